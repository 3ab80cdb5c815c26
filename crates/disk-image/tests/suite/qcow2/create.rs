//! Images that Firn makes, as QEMU sees them.

use std::sync::Arc;

use super::common::{Folder, contents, same, text};
use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::qcow2::{
    Compression, CreateOptions, Header, Image, OpenOptions, Preallocation, create,
};

fn variants() -> Vec<CreateOptions> {
    let plain = CreateOptions::new(ByteCount::new((3 << 20) + 512));
    let mut all = vec![plain.clone()];
    let mut add = |change: &dyn Fn(&mut CreateOptions)| {
        let mut options = plain.clone();
        change(&mut options);
        all.push(options);
    };
    add(&|options| options.version = 2);
    add(&|options| options.extended_l2 = true);
    add(&|options| options.compression = Compression::Zstd);
    add(&|options| options.lazy_refcounts = true);
    add(&|options| options.size = ByteCount::ZERO);
    add(&|options| options.size = ByteCount::new(1 << 45));
    for bits in [1, 2, 4, 8, 32, 64] {
        add(&|options| options.refcount_bits = bits);
    }
    for bits in 9..=21 {
        add(&|options| options.cluster_size = ByteCount::new(1 << bits));
    }
    for how in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        add(&|options| options.preallocation = how);
        add(&|options| {
            options.preallocation = how;
            options.cluster_size = ByteCount::new(512);
        });
        add(&|options| {
            options.preallocation = how;
            options.extended_l2 = true;
        });
    }
    all
}

#[test]
fn qemu_reads_and_writes_every_image() {
    let folder = Folder::new();
    for (number, options) in variants().into_iter().enumerate() {
        let name = format!("{number}.qcow2");
        create(&folder.new_file(&name), None, &options)
            .unwrap_or_else(|error| panic!("{options:?}: {error}"));
        folder.check(&name);
        let info = folder.img(&format!("info --output=json {name}"));
        let size = options.size.get();
        assert!(info.contains(&format!("\"virtual-size\": {size}")), "{options:?}: {info}");
        let bits = format!("\"refcount-bits\": {}", options.refcount_bits);
        assert!(info.contains(&bits), "{info}");
        if size == 0 {
            continue;
        }
        folder.io(&name, &["write -q -P 7 65000 70000".into(), "write -q -P 8 2M 1M".into()]);
        folder.check(&name);
        let image = folder.open(&name);
        let mut bytes = vec![0; 3 << 20];
        image.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        let mut expected = vec![0; 3 << 20];
        expected[65000..135_000].fill(7);
        expected[2 << 20..].fill(8);
        same(&bytes, &expected);
    }
}

#[test]
fn the_layout_is_qemus() {
    let folder = Folder::new();
    drop(folder.create("ours", &CreateOptions::new(ByteCount::new(1 << 20))));
    folder.img("create -q -f qcow2 theirs 1M");
    let ours = std::fs::read(folder.file("ours")).expect("done");
    let theirs = std::fs::read(folder.file("theirs")).expect("done");
    same(&ours[..theirs.len().min(ours.len())], &theirs[..theirs.len().min(ours.len())]);
}

#[test]
fn a_backing_file_is_named_and_never_opened() {
    let folder = Folder::new();
    let base = text(1 << 20, 5);
    std::fs::write(folder.file("base.raw"), &base).expect("done");
    let mut options = CreateOptions::new(ByteCount::new(2 << 20));
    options.backing = Some(("base.raw".into(), "raw".into()));
    create(&folder.new_file("top.qcow2"), None, &options).expect("created");
    let error = folder.try_open("top.qcow2", OpenOptions::default()).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("'base.raw'"), "{error}");
    let backing = Some(folder.host("base.raw", true));
    let image = folder
        .try_open("top.qcow2", OpenOptions { backing, ..OpenOptions::default() })
        .expect("opened");
    let header = image.header();
    assert_eq!(header.backing_file().expect("done"), "base.raw");
    assert_eq!(header.backing_format().expect("done"), "raw");
    let mut disk = base.clone();
    disk.resize(2 << 20, 0);
    same(&contents(&*image), &disk);
    image.write_at(&[9; 100], ByteOffset::new(70_000)).expect("written");
    disk[70_000..70_100].fill(9);
    let zero = block_types::ByteRange::new(ByteOffset::new(131_072), ByteCount::new(65_536));
    image.discard(zero).expect("discarded");
    disk[131_072..196_608].fill(0);
    image.write_at(&[8; 3000], ByteOffset::new((1 << 20) - 1000)).expect("written");
    disk[(1 << 20) - 1000..(1 << 20) + 2000].fill(8);
    same(&contents(&*image), &disk);
    image.close().expect("closed");
    folder.check("top.qcow2");
    same(&folder.content("top.qcow2", "-f qcow2"), &disk);
    same(&std::fs::read(folder.file("base.raw")).expect("done"), &base);
}

#[test]
fn an_external_data_file() {
    let folder = Folder::new();
    for raw in [false, true] {
        let (name, data_name) = (format!("{raw}.qcow2"), format!("{raw}.data"));
        let mut options = CreateOptions::new(ByteCount::new((1 << 20) + 1024));
        options.data_file = Some(data_name.clone().into());
        options.data_file_raw = raw;
        let data = folder.new_file(&data_name);
        create(&folder.new_file(&name), Some(&data), &options).expect("created");
        folder.check(&name);
        let open = || {
            let data = Some(Arc::clone(&data));
            folder.try_open(&name, OpenOptions { data, ..OpenOptions::default() }).expect("opened")
        };
        let image = open();
        assert_eq!(image.header().data_file_raw(), raw);
        let mut disk = vec![0; (1 << 20) + 1024];
        image.write_at(&[1; 100_000], ByteOffset::new(1000)).expect("written");
        disk[1000..101_000].fill(1);
        image.write_at(&[2; 1024], ByteOffset::new(1 << 20)).expect("written");
        disk[1 << 20..].fill(2);
        let zeros = block_types::ByteRange::new(ByteOffset::new(65_536), ByteCount::new(10_000));
        image.zero(zeros, block_io::ZeroMode::default()).expect("zeroed");
        disk[65_536..75_536].fill(0);
        same(&contents(&*image), &disk);
        let error = image.create_snapshot("no", std::time::SystemTime::now()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        image.close().expect("closed");
        folder.check(&name);
        same(&folder.content(&name, "-f qcow2"), &disk);
        if raw {
            same(&contents(&*data), &disk);
        }
        drop(image);
        folder.io(&name, &["write -q -P 5 200k 100k".into()]);
        disk[200 << 10..300 << 10].fill(5);
        same(&contents(&*open()), &disk);
    }
    folder.img("create -q -f qcow2 -o data_file=q.data q.qcow2 1M");
    let error = folder.try_open("q.qcow2", OpenOptions::default()).err().expect("refused");
    assert!(error.to_string().contains("'q.data'"), "{error}");
}

#[test]
fn options_that_do_not_go_together() {
    let folder = Folder::new();
    let file = folder.new_file("a");
    let refuse = |change: &dyn Fn(&mut CreateOptions)| {
        let mut options = CreateOptions::new(ByteCount::new(1 << 20));
        change(&mut options);
        let error = create(&file, None, &options).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    };
    refuse(&|options| options.version = 4);
    refuse(&|options| options.cluster_size = ByteCount::new(4 << 20));
    refuse(&|options| options.cluster_size = ByteCount::new(5000));
    refuse(&|options| options.refcount_bits = 128);
    refuse(&|options| options.data_file_raw = true);
    refuse(&|options| options.size = ByteCount::new(u64::MAX / 2));
    refuse(&|options| {
        options.cluster_size = ByteCount::new(512);
        options.size = ByteCount::new((128 << 30) + 1);
    });
    refuse(&|options| {
        options.version = 2;
        options.extended_l2 = true;
    });
    refuse(&|options| {
        options.cluster_size = ByteCount::new(8192);
        options.extended_l2 = true;
    });
    refuse(&|options| options.backing = Some(("x".repeat(1024).into(), "raw".into())));
    assert!(Header::read(&*file).is_err());
    assert!(Image::open(file, OpenOptions::default()).is_err());
}
