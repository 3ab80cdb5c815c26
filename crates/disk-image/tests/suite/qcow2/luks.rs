//! Encrypted images: QEMU's and ours, read and written in both directions.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::common::{Folder, contents, same};
use block_io::{BlockDevice, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use disk_image::qcow2::{
    CreateOptions, Image, NewEncryption, OpenOptions, Own, Secret, check, create,
};
use testkit::peer::peer;
use testkit::rng::Rng;

const MIB: u64 = 1 << 20;
const SECRET: &str = "a secret of blanks\n and lines";

fn opened() -> OpenOptions {
    OpenOptions { secret: Some(Secret::new(SECRET.into())), ..OpenOptions::default() }
}

fn options(size: u64) -> CreateOptions {
    let uuid = "6b6f2b3e-7f4d-4b5a-9d6e-1c2d3e4f5a6b".to_owned();
    let secret = Secret::new(SECRET.into());
    let encryption = Some(NewEncryption { secret, time: Duration::from_millis(5), uuid });
    CreateOptions { encryption, ..CreateOptions::new(ByteCount::new(size)) }
}

/// Runs a program of QEMU on the encrypted image `image`.
fn qemu(folder: &Folder, program: &str, words: &[&str], image: &str) -> String {
    fs::write(folder.file("key"), SECRET).expect("written");
    let node = format!("driver=qcow2,encrypt.key-secret=s,file.filename={image}");
    let key = ["--object", "secret,id=s,file=key"];
    let (first, rest) = words.split_at(usize::from(program == "qemu-img"));
    let run = peer(program).args(first).args(key).arg("--image-opts").args(rest).arg(node);
    run.in_folder(folder.path()).ok()
}

#[test]
fn what_qemu_encrypts_is_read_and_written() {
    let folder = Folder::new();
    fs::write(folder.file("key"), SECRET).expect("written");
    for more in
        ["", ",cluster_size=4k", ",extended_l2=on", ",encrypt.cipher-alg=aes-128", ",cbc", ",essiv"]
    {
        let more = match more {
            ",cbc" => ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64,encrypt.hash-alg=sha512",
            ",essiv" => {
                ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"
            }
            more => more,
        };
        folder.img(&format!(
            "create -q -f qcow2 --object secret,id=s,file=key -o \
             encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10{more} a.qcow2 8M"
        ));
        let writes = ["-c", "write -q -P 65 0 1M", "-c", "write -q -P 66 2000k 70k"];
        qemu(&folder, "qemu-io", &writes, "a.qcow2");
        let mut disk = vec![0; 8 << 20];
        disk[..1 << 20].fill(65);
        disk[2000 << 10..2070 << 10].fill(66);
        let image = folder.try_open("a.qcow2", opened()).expect("opened");
        same(&contents(&*image), &disk);
        // Pieces of sectors, clusters that are there and that are not, zeros, what is given up.
        for (at, len, byte) in [(100u64, 700, 1), (999_999, 300_000, 2), (5 << 20, 1 << 19, 3)] {
            image.write_at(&vec![byte; len], ByteOffset::new(at)).expect("written");
            disk[at as usize..at as usize + len].fill(byte);
        }
        let zeros = ByteRange::new(ByteOffset::new(300_001), ByteCount::new(200_000));
        image.zero(zeros, ZeroMode::default()).expect("zeroed");
        disk[300_001..500_001].fill(0);
        image.create_snapshot("then", SystemTime::now()).expect("taken");
        let then = disk.clone();
        image.write_at(&[9; 4000], ByteOffset::new(6_000_001)).expect("written");
        disk[6_000_001..6_004_001].fill(9);
        image.close().expect("closed");
        drop(image);
        let convert = ["convert", "-q", "-O", "raw"];
        fs::write(folder.file("ours.raw"), &disk).expect("written");
        qemu(&folder, "qemu-img", &["check", "-q"], "a.qcow2");
        let content = |words: &[&str]| {
            let node = "driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2";
            let run = peer("qemu-img").args(convert).args(["--object", "secret,id=s,file=key"]);
            let run = run.args(words).arg("--image-opts").args([node, "theirs.raw"]);
            run.in_folder(folder.path()).ok();
            fs::read(folder.file("theirs.raw")).expect("read")
        };
        same(&content(&[]), &disk);
        same(&content(&["-l", "then"]), &then);
    }
}

#[test]
fn what_firn_encrypts_qemu_reads_and_writes() {
    let folder = Folder::new();
    create(&folder.new_file("a.qcow2"), None, &options(8 * MIB)).expect("created");
    let image = folder.try_open("a.qcow2", opened()).expect("opened");
    let mut disk = vec![0; 8 << 20];
    image.write_at(&[7; 100_000], ByteOffset::new(123_456)).expect("written");
    disk[123_456..223_456].fill(7);
    let mut places = Vec::new();
    let whole = ByteRange::new(ByteOffset::ZERO, image.size());
    image
        .own_extents(whole, &mut |extent| {
            places.push(extent.own);
            std::ops::ControlFlow::Continue(())
        })
        .expect("mapped");
    assert!(places.contains(&Own::Data(None)), "what is encrypted does not lie there as it is");
    image.close().expect("closed");
    drop(image);
    let bytes = fs::read(folder.file("a.qcow2")).expect("read");
    assert!(!bytes.windows(64).any(|window| window == [7; 64]), "plain text in the file");
    qemu(&folder, "qemu-img", &["check", "-q"], "a.qcow2");
    let commands = ["-c", "read -q -P 7 123456 100000", "-c", "write -q -P 8 4M 1M"];
    let said = qemu(&folder, "qemu-io", &commands, "a.qcow2");
    assert!(!said.contains("failed"), "{said}");
    disk[4 << 20..5 << 20].fill(8);
    let image = folder.try_open("a.qcow2", opened()).expect("opened");
    same(&contents(&*image), &disk);
    let error = image.write_compressed(&[1; 65536], ByteOffset::ZERO).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn only_with_the_right_secret() {
    let folder = Folder::new();
    create(&folder.new_file("a.qcow2"), None, &options(MIB)).expect("created");
    let before = fs::read(folder.file("a.qcow2")).expect("read");
    for secret in [None, Some(Secret::new(b"other".to_vec()))] {
        let options = OpenOptions { secret, ..OpenOptions::default() };
        let error = folder.try_open("a.qcow2", options).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
    assert!(fs::read(folder.file("a.qcow2")).expect("read") == before);
    folder.img(
        "create -q -f qcow2 --object secret,id=k,data=firn -o \
         encrypt.format=aes,encrypt.key-secret=k old.qcow2 1M",
    );
    let error = folder.try_open("old.qcow2", opened()).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("AES without LUKS"), "{error}");
}

/// Random requests with snapshots, on layouts of every sort, against plain bytes.
#[test]
fn an_encrypted_disk_is_a_disk_like_any_other() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let mut options = options(300_032);
        options.cluster_size = ByteCount::new(*rng.pick(&[512, 4096, 16384, 65536]));
        options.extended_l2 = options.cluster_size.get() >= 16384 && rng.chance(1, 2);
        let backing: Option<Arc<dyn BlockDevice>> = rng.chance(1, 2).then(|| {
            let bytes = (0..200_000u32).map(|at| (at / 100) as u8).collect();
            Arc::new(MemoryDevice::from_bytes("backing", bytes)) as Arc<dyn BlockDevice>
        });
        options.backing = backing.as_ref().map(|_| ("backing".into(), "raw".into()));
        let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("image", ByteCount::ZERO));
        create(&file, None, &options).expect("created");
        let open = || {
            let options = OpenOptions { backing: backing.clone(), ..opened() };
            Image::open(Arc::clone(&file), options).expect("opened")
        };
        let mut image = open();
        let mut disk = contents(&*image);
        let mut then = None;
        for step in 0..120u64 {
            let start = rng.within(0..300_000);
            let len = rng.within(1..40_000).min(300_032 - start);
            let range = ByteRange::new(ByteOffset::new(start), ByteCount::new(len));
            let part = start as usize..(start + len) as usize;
            match rng.within(0..10) {
                0..6 => {
                    let bytes = vec![step as u8 + 1; len as usize];
                    image.write_at(&bytes, range.start).expect("written");
                    disk[part].copy_from_slice(&bytes);
                }
                6 => {
                    let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
                    image.zero(range, mode).expect("zeroed");
                    disk[part].fill(0);
                }
                7 => {
                    if then.is_none() {
                        image.create_snapshot("then", SystemTime::now()).expect("taken");
                        then = Some(disk.clone());
                    }
                }
                8 => {
                    if let Some(then) = &then {
                        image.revert_to_snapshot("then").expect("reverted");
                        disk.clone_from(then);
                    }
                }
                _ => {
                    image.close().expect("closed");
                    image = open();
                }
            }
        }
        same(&contents(&*image), &disk);
        if let Some(then) = &then {
            same(&contents(&*image.open_snapshot("then").expect("opened")), then);
        }
        image.close().expect("closed");
        let report = check(&file).expect("checked");
        assert!(report.is_sound(), "seed {seed}: {report:#?}");
    }
}
