//! `pack` and `unpack`: what comes back is what was there, whoever packed it.
//!
//! Debian 12 has no `thin_metadata_pack`; a pack that 1.3.3 made of an image stands for it, and the
//! measurement of large pools runs it where it is installed.

use std::io::Write;
use std::sync::Arc;

use block_io::MemoryDevice;
use block_types::{ByteCount, ErrorKind, Result};
use dm_thin::pack::{pack, unpack};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use persistent_data::identify;
use testkit::rng::Rng;

use super::pools::Void;
use super::{IMAGES, Metadata};

/// What a pack of `bytes` keeps: blocks of metadata.
fn kept(bytes: &[u8]) -> Vec<u8> {
    bytes
        .chunks(4096)
        .flat_map(|block| match identify(block) {
            Some(_) => block.to_vec(),
            None => vec![0; 4096],
        })
        .collect()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let device = MemoryDevice::from_bytes("metadata", bytes.to_vec());
    pack(&device, &mut out).expect("packed");
    out
}

/// A device that holds something else.
fn used(size: usize) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::from_bytes("unpacked", vec![0xa5; size]))
}

fn unpacked(pack: &[u8], size: usize) -> Result<Vec<u8>> {
    let device = used(size);
    unpack(pack, &*device)?;
    Ok(device.to_bytes())
}

/// A pack with these chunks, compressed here.
fn with_chunks(blocks: u64, chunks: &[&[u8]]) -> Vec<u8> {
    let words = [0xa537_a0aa_6309_ef77, 3, 4096, blocks];
    let mut pack: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    for chunk in chunks {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(chunk).expect("compressed");
        let chunk = encoder.finish().expect("compressed");
        pack.extend((chunk.len() as u64).to_le_bytes());
        pack.extend(chunk);
    }
    pack
}

#[test]
fn every_image_comes_back() {
    for image in IMAGES {
        let bytes = Metadata::image(image).bytes();
        let pack = packed(&bytes);
        assert!(pack.len() < 100_000, "{image}: {} bytes", pack.len());
        assert_eq!(packed(&bytes), pack, "{image} twice");
        // On a device that is larger, and on one that has to grow.
        let large = unpacked(&pack, bytes.len() + 8192).expect("unpacked");
        let (front, back) = large.split_at(bytes.len());
        assert!(front == kept(&bytes), "{image}");
        assert!(back.iter().all(|&byte| byte == 0), "{image}: old bytes shine through");
        assert!(unpacked(&pack, 4096).expect("unpacked") == kept(&bytes), "{image}");
    }
}

#[test]
fn a_pack_of_1_3_comes_back() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/thin-1.3.3/k61-oom.pack");
    let pack = std::fs::read(path).expect("the pack");
    let bytes = Metadata::image("k61-oom").bytes();
    assert!(unpacked(&pack, bytes.len()).expect("unpacked") == kept(&bytes));
}

#[test]
fn broken_packs_are_refused() {
    let bytes = Metadata::image("k61-m2.snaps").bytes();
    let whole = packed(&bytes);
    let expected = kept(&bytes);
    for len in 0..whole.len() {
        match unpacked(&whole[..len], bytes.len()) {
            // A pack may end behind any chunk: here behind its head, with no chunk at all.
            Ok(_) => assert_eq!(len, 32),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{len}: {error}"),
        }
    }
    let mut rng = Rng::new(7);
    for _ in 0..300 {
        let mut pack = whole.clone();
        let place = rng.index(pack.len());
        pack[place] ^= 1 << rng.within(0..8);
        if let Ok(found) = unpacked(&pack, bytes.len()) {
            // Only the number of blocks is not covered by any checksum.
            assert!((24..32).contains(&place) || found == expected, "byte {place}");
        }
    }
}

#[test]
fn hostile_packs_are_refused() {
    let refused = |pack: &[u8]| unpacked(pack, 1 << 20).expect_err("refused").to_string();
    let head = |words: [u64; 4]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let magic = 0xa537_a0aa_6309_ef77;
    for (words, problem) in [
        ([1, 3, 4096, 10], "is none"),
        ([magic, 2, 4096, 10], "has version 2, only 3 is known"),
        ([magic, 3, 512, 10], "has blocks of 512 bytes"),
        ([magic, 3, 4096, 0], "is of 0 blocks"),
        ([magic, 3, 4096, u64::MAX], "is of 18446744073709551615 blocks"),
    ] {
        let pack: Vec<u8> = head(words);
        assert!(refused(&pack).contains(problem), "{}", refused(&pack));
    }
    let mut long: Vec<u8> = head([magic, 3, 4096, 10]);
    long.extend(u64::MAX.to_le_bytes());
    assert!(refused(&long).contains("has a chunk of 18446744073709551615 bytes"));

    let superblock = &Metadata::image("k61-m1.thin").bytes()[..4096];
    let block = |number: u64| {
        let mut chunk = number.to_le_bytes().to_vec();
        chunk.extend([0xa2, 0x00, 0x10]);
        chunk.extend(superblock);
        chunk
    };
    unpacked(&with_chunks(10, &[&block(0)]), 1 << 20).expect("unpacked");
    let two = [block(0), block(0)];
    for (pack, problem) in [
        (with_chunks(10, &[&block(10)]), "has block 10 of 10"),
        (with_chunks(10, &[&two.concat()]), "has block 0 twice"),
        (with_chunks(10, &[&two[0], &two[1]]), "has block 0 twice"),
        (with_chunks(10, &[&block(0)[..100]]), "ends inside a block (metadata block 0)"),
        (with_chunks(10, &[&[0, 0, 0, 0]]), "ends inside a block"),
        (with_chunks(10, &[&[0, 0, 0, 0, 0, 0, 0, 0, 0x01, 7, 0x61, 0xff]]), "makes no metadata"),
        (with_chunks(10, &[&vec![0; 65 << 20]]), "grows over"),
    ] {
        assert!(refused(&pack).contains(problem), "{}", refused(&pack));
    }
}

#[test]
fn a_device_that_is_too_small_and_cannot_grow_is_refused() {
    let pack = packed(&Metadata::image("k61-oom").bytes());
    let error = unpack(&pack[..], &Void(ByteCount::new(8192))).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
}
