//! Images made to harm: a clear error, no panic, bounded memory.

use std::sync::Arc;

use super::common::Folder;
use super::model::Setup;
use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::qcow2::{CreateOptions, Header, Image, OpenOptions, Repair, check, create, repair};
use testkit::rng::Rng;

fn bytes() -> Vec<u8> {
    let memory = Arc::new(MemoryDevice::new("evil", ByteCount::ZERO));
    let file: Arc<dyn BlockDevice> = memory.clone();
    create(&file, None, &CreateOptions::new(ByteCount::new(1 << 20))).expect("created");
    memory.to_bytes()
}

#[test]
fn figures_of_the_header_at_their_limits() {
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"QFX\xfb", "no qcow2 image"),
        (4, &[0, 0, 0, 4], "version 4"),
        (4, &[0, 0, 0, 1], "version 1"),
        (8, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1], "backing file's name"),
        (8, &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1], "backing file's name"),
        (8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0], "backing file's name"),
        (20, &[0, 0, 0, 8], "2^8"),
        (20, &[0, 0, 0, 22], "2^22"),
        (20, &[0xff; 4], "bytes"),
        (24, &[0xff; 8], "L1 table"),
        (24, &[0, 0, 0, 0, 0x30, 0, 0, 0], "L1 table"),
        (32, &[0, 0, 0, 9], "method 9"),
        (36, &[0xff; 4], "L1 table"),
        (36, &[0, 0x40, 0, 1], "L1 table"),
        (40, &[0; 8], "L1 table"),
        (40, &[0xff; 8], "L1 table"),
        (40, &[0, 0, 0, 0, 0, 3, 0, 1], "L1 table"),
        (40, &[0, 0, 0, 0, 0x40, 0, 0, 0], "L1 table"),
        (48, &[0; 8], "refcount table"),
        (48, &[0xff; 8], "refcount table"),
        (56, &[0; 4], "refcount table"),
        (56, &[0xff; 4], "refcount table"),
        (60, &[0, 1, 0, 1], "snapshots"),
        (60, &[0, 0, 0, 1], "snapshot table"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8], "compression"),
        (88, &[0, 0, 0, 0, 0, 0, 0, 2], "raw data file"),
        (96, &[0, 0, 0, 7], "2^7 bits"),
        (100, &[0, 0, 0, 103], "header of 103"),
        (100, &[0, 0, 0, 99], "header of 99"),
        (100, &[0xff; 4], "header of"),
        (104, &[1], "compression"),
        (104, &[2], "type 2"),
        (116, &[0xff; 4], "extension"),
    ];
    for (at, patch, expected) in cases {
        let mut image = bytes();
        image[*at..at + patch.len()].copy_from_slice(patch);
        let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("evil", image));
        let error = Header::read(&*file).err().unwrap_or_else(|| panic!("byte {at}: taken"));
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported),
            "byte {at}: {error}"
        );
        assert!(error.to_string().contains(expected), "byte {at}: {error}");
        assert!(error.object().contains("evil"));
    }
}

#[test]
fn files_that_are_cut() {
    let image = bytes();
    for len in [0, 1, 4, 71, 72, 104, 512, 65536, 65537, 131_072, 196_608, 200_000] {
        let cut = image[..len].to_vec();
        let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("evil", cut));
        // Whatever it says, it says it.
        if let Ok(image) = Image::open(Arc::clone(&file), OpenOptions::default()) {
            drop(image.write_at(&[1; 512], ByteOffset::ZERO));
            drop(image.close());
        }
        drop(check(&file));
    }
}

/// Does everything that can be done with an image, and expects nothing but an end.
fn use_all(file: &Arc<dyn BlockDevice>, setup: &Setup) {
    drop(check(file));
    for read_only in [true, false] {
        let backing = setup.backing.clone();
        let options = OpenOptions { backing, read_only, ..OpenOptions::default() };
        let Ok(image) = Image::open(Arc::clone(file), options) else { continue };
        let mut buffer = vec![0; 1 << 16];
        for at in 0..10 {
            drop(image.read_at(&mut buffer, ByteOffset::new(at << 16)));
        }
        for snapshot in image.snapshots() {
            if let Ok(view) = image.open_snapshot(&snapshot.id) {
                drop(view.read_at(&mut buffer[..4096], ByteOffset::new(4096)));
            }
        }
        for at in 0..4 {
            drop(image.write_at(&buffer[..5000], ByteOffset::new(at * 50_000)));
        }
        drop(image.flush());
        for snapshot in image.snapshots() {
            drop(image.revert_to_snapshot(&snapshot.id));
            drop(image.delete_snapshot(&snapshot.id));
        }
        drop(image.create_snapshot("more", std::time::SystemTime::now()));
        drop(image.resize(ByteCount::new(1 << 21)));
        drop(image.close());
    }
    drop(repair(file, Repair::All));
}

#[test]
fn damaged_tables_end_in_errors_and_not_in_panics() {
    let rounds = if std::env::var_os("FIRN_LONG").is_some() { 40_000 } else { 300 };
    let mut rng = Rng::new(5);
    let images: Vec<(Setup, Vec<u8>, Vec<usize>)> = (0..12)
        .map(|seed| {
            let mut rng = Rng::new(seed);
            let setup = Setup::random(&mut rng);
            let memory = Arc::new(MemoryDevice::from_bytes("image", setup.image()));
            let image = setup.open(memory.clone()).expect("opened");
            let mut model = setup.model();
            for _ in 0..40 {
                drop(model.step(&image, &mut rng));
            }
            drop(image.create_snapshot("last", std::time::SystemTime::now()));
            image.close().expect("closed");
            let bytes = memory.to_bytes();
            // Where tables are: words that are small numbers or places in the file.
            let places = (0..bytes.len() / 8).map(|word| word * 8).filter(|&at| {
                let word = u64::from_be_bytes(bytes[at..at + 8].try_into().expect("done"));
                at < 160 || (word != 0 && word << 2 >> 2 < 2 * bytes.len() as u64)
            });
            let places = places.collect();
            (setup, bytes, places)
        })
        .collect();
    let folder = Folder::new();
    for _ in 0..rounds {
        let (setup, bytes, places) = rng.pick(&images);
        let mut bytes = bytes.clone();
        for _ in 0..rng.within(1..4) {
            let at = *rng.pick(places) + rng.index(8);
            bytes[at] = match rng.within(0..3) {
                0 => rng.bits() as u8,
                1 => bytes[at] ^ 1 << rng.within(0..8),
                _ => *rng.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            };
        }
        // A real file: one that is made to grow far stays sparse.
        std::fs::write(folder.file("evil"), &bytes).expect("written");
        use_all(&folder.host("evil", false), setup);
    }
}
