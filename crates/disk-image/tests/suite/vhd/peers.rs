//! QEMU for fixed and dynamic disks, both ways; libvhdi for chains. QEMU reads a differencing disk
//! as if it stood alone, so it is no judge of those.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::vhd::common::{content, create_at, host, id, link, open_read_only, options};
use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset};
use disk_image::vhd::{
    BatmapState, Content, CreateOptions, Creator, Kind, OpenOptions, Parent, Verdict, VhdImage,
    check, repair,
};
use tempfile::TempDir;
use testkit::peer::{Peer, peer};
use testkit::rng::Rng;

const BLOCK: u64 = 2 << 20;
/// A size that no geometry has, with a last block that is a broken one.
const SIZE: u64 = 9 * BLOCK + 5 * 512;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A program of libvhdi.
fn libvhdi(program: &str) -> Peer {
    Peer::find(program)
        .unwrap_or_else(|error| panic!("{error}: install the Debian package libvhdi-utils"))
}

/// Writes random stretches to `image`, and to `model` as well.
fn scribble(image: &dyn BlockDevice, model: &mut [u8], rng: &mut Rng, count: usize) {
    scribble_in(512, image, model, rng, count);
}

/// The same, in multiples of `unit`.
fn scribble_in(
    unit: usize,
    image: &dyn BlockDevice,
    model: &mut [u8],
    rng: &mut Rng,
    count: usize,
) {
    for _ in 0..count {
        let units = model.len() / unit;
        let first = rng.index(units);
        let most = if rng.chance(1, 4) { 2_500_000 / unit } else { 40 };
        let len = (1 + rng.index(most)).min(units - first);
        let part = &mut model[first * unit..(first + len) * unit];
        rng.fill(part);
        image.write_at(part, ByteOffset::new((first * unit) as u64)).expect("written");
    }
}

/// What QEMU reads.
fn qemu_content(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let args = ["convert", "-f", "vpc", "-O", "raw"];
    peer("qemu-img").args(args).arg(path).arg(&raw).ok();
    let bytes = fs::read(&raw).expect("there");
    fs::remove_file(raw).expect("removed");
    bytes
}

fn qemu_write(path: &Path, at: u64, len: u64, pattern: u8) {
    let command = format!("write -P {pattern} {at} {len}");
    peer("qemu-io").args(["-f", "vpc", "-c", &command]).arg(path).ok();
}

/// An error where images differ: comparing whole buffers by `assert_eq!` prints them.
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = found.iter().zip(expected).position(|(one, other)| one != other);
    assert_eq!(differs, None, "{what} differs first at this byte");
}

#[test]
fn qemu_reads_and_writes_what_we_write() {
    let folder = folder();
    for (name, content_kind, creator) in [
        ("fixed.vhd", Content::Fixed, Creator::WINDOWS),
        ("dynamic.vhd", Content::Dynamic, Creator::WINDOWS),
        ("xen.vhd", Content::Dynamic, Creator::XENSERVER),
    ] {
        let path = folder.path().join(name);
        let plain = options(content_kind, 1, SIZE, BLOCK);
        let image = create_at(&path, &CreateOptions { creator, ..plain }, None);
        let mut model = vec![0; SIZE as usize];
        scribble(&*image, &mut model, &mut Rng::new(1), 12);
        // So that QEMU has blocks to add, and none of them first in the file.
        let zeros = vec![0; BLOCK as usize];
        for block in [2, 5] {
            let at = block * BLOCK;
            image.write_at(&zeros, ByteOffset::new(at)).expect("written");
            model[at as usize..(at + BLOCK) as usize].fill(0);
        }
        image.close().expect("closed");
        assert_same(&qemu_content(&path), &model, name);
        for (at, len) in [(4096, 8192), (SIZE - 1024, 1024), (3 * BLOCK - 512, 1024)] {
            qemu_write(&path, at, len, 0x5a);
            model[at as usize..(at + len) as usize].fill(0x5a);
        }
        let report = check(&*host(&path, true), None).expect("checked");
        assert_eq!(report.verdict(), Verdict::Sound, "{name}: {report:#?}");
        let image = VhdImage::open(host(&path, false), None, OpenOptions::default());
        let image = image.expect("opened");
        assert_same(&content(&image), &model, name);
        scribble(&image, &mut model, &mut Rng::new(2), 12);
        image.close().expect("closed");
        assert_same(&qemu_content(&path), &model, name);
    }
}

#[test]
fn we_read_and_write_what_qemu_writes() {
    let folder = folder();
    for subformat in ["fixed", "dynamic"] {
        let path = folder.path().join(format!("{subformat}.vhd"));
        let how = format!("subformat={subformat},force_size=on");
        let size = SIZE.to_string();
        let args = ["create", "-q", "-f", "vpc", "-o", how.as_str()];
        peer("qemu-img").args(args).arg(&path).arg(&size).ok();
        let mut model = vec![0; SIZE as usize];
        for (at, len, pattern) in [(0, 512, 1), (BLOCK - 4096, 8192, 2), (SIZE - 512, 512, 3)] {
            qemu_write(&path, at, len, pattern);
            model[at as usize..(at + len) as usize].fill(pattern);
        }
        let report = check(&*host(&path, true), None).expect("checked");
        assert_eq!(report.verdict(), Verdict::Sound, "{subformat}: {report:#?}");
        let image = VhdImage::open(host(&path, false), None, OpenOptions::default());
        let image = image.expect("opened");
        assert_same(&content(&image), &model, subformat);
        scribble(&image, &mut model, &mut Rng::new(3), 20);
        image.close().expect("closed");
        assert_same(&qemu_content(&path), &model, subformat);
        let kind = if subformat == "fixed" { Kind::Fixed } else { Kind::Dynamic };
        assert_eq!(image.kind(), kind);
    }
}

#[test]
fn qemu_converts_to_what_we_read() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    let mut model = vec![0; SIZE as usize];
    Rng::new(4).fill(&mut model[3 << 20..5 << 20]);
    fs::write(&raw, &model).expect("written");
    let path = folder.path().join("disk.vhd");
    let args = ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"];
    peer("qemu-img").args(args).arg(&raw).arg(&path).ok();
    let image = open_read_only(host(&path, true), None);
    assert_same(&content(&*image), &model, "converted");
}

/// QEMU knows nothing of the batmap: into a fresh image it puts the first block over it.
#[test]
fn a_batmap_that_qemu_wrote_over_is_not_trusted_and_is_repaired() {
    let folder = folder();
    let path = folder.path().join("fresh.vhd");
    create_at(&path, &options(Content::Dynamic, 1, SIZE, BLOCK), None).close().expect("closed");
    let mut model = vec![0; SIZE as usize];
    for block in [3, 0, 4] {
        qemu_write(&path, block * BLOCK, BLOCK, 7);
        model[(block * BLOCK) as usize..][..BLOCK as usize].fill(7);
    }
    let image = open_read_only(host(&path, true), None);
    let state = image.info().expect("read").sparse.expect("is dynamic").batmap;
    assert!(matches!(state, BatmapState::Distrusted(_)), "{state:?}");
    assert_same(&content(&*image), &model, "as QEMU left it");
    let refused = VhdImage::open(host(&path, false), None, OpenOptions::default());
    assert!(refused.err().expect("refused").to_string().contains("repair"));
    assert_eq!(check(&*host(&path, true), None).expect("checked").verdict(), Verdict::Corrupt);
    let file: Arc<dyn BlockDevice> = host(&path, false);
    let report = repair(&file).expect("repaired");
    assert_eq!(report.left.verdict(), Verdict::Sound, "{report:#?}");
    assert_eq!(report.done.len(), 2, "{report:#?}");
    let image = open_read_only(host(&path, true), None);
    let state = image.info().expect("read").sparse.expect("is dynamic").batmap;
    assert_eq!(state, BatmapState::Trusted);
    assert_same(&content(&*image), &model, "repaired");
    assert_same(&qemu_content(&path), &model, "repaired, by QEMU");
}

/// Blocks that QEMU adds behind others leave a batmap that says less than it could, and no wrong.
#[test]
fn a_batmap_is_right_after_qemu_has_written() {
    let folder = folder();
    let path = folder.path().join("used.vhd");
    let image = create_at(&path, &options(Content::Dynamic, 1, SIZE, BLOCK), None);
    let mut model = vec![0; SIZE as usize];
    scribble(&*image, &mut model, &mut Rng::new(5), 3);
    image.close().expect("closed");
    for block in 0..9 {
        qemu_write(&path, block * BLOCK + 512, 512, 9);
        model[(block * BLOCK) as usize + 512..][..512].fill(9);
    }
    let image = open_read_only(host(&path, true), None);
    let state = image.info().expect("read").sparse.expect("is dynamic").batmap;
    assert_eq!(state, BatmapState::Trusted);
    assert_same(&content(&*image), &model, "after QEMU");
    assert_eq!(check(&*host(&path, true), None).expect("checked").verdict(), Verdict::Sound);
}

/// A chain of three with stretches of 4 KiB in each, and what each has to hold. Where a run of
/// sectors ends inside a byte of the bitmap, libvhdi 20210425 takes the rest of the byte for the
/// child's, too; libvhd does not.
fn chain(folder: &Path, creator: Creator) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(6);
    let mut model = vec![0; SIZE as usize];
    let mut models = Vec::new();
    let mut parent = None;
    for number in 1..=3 {
        let content = match number {
            1 => Content::Dynamic,
            _ => Content::Differencing(link(number - 1, &format!("disk{}.vhd", number - 1))),
        };
        let plain = options(content, number, SIZE, BLOCK);
        let path = folder.join(format!("disk{number}.vhd"));
        let image = create_at(&path, &CreateOptions { creator, ..plain }, parent);
        scribble_in(4096, &*image, &mut model, &mut rng, 10);
        image.close().expect("closed");
        models.push(model.clone());
        parent = Some(Parent::vhd(&image));
    }
    models
}

/// What libvhdi reads of the chain that ends in `leaf`: the root first.
fn mounted(folder: &Path, leaf: &str) -> Vec<Vec<u8>> {
    let point = folder.join("mounted");
    fs::create_dir(&point).expect("made");
    libvhdi("vhdimount").arg(folder.join(leaf)).arg(&point).ok();
    let layers = (1..=9).map_while(|layer| fs::read(point.join(format!("vhdi{layer}"))).ok());
    let layers = layers.collect();
    peer("umount").arg(&point).ok();
    fs::remove_dir(&point).expect("removed");
    layers
}

#[test]
fn libvhdi_reads_our_chains() {
    for creator in [Creator::XENSERVER, Creator::WINDOWS] {
        let folder = folder();
        let models = chain(folder.path(), creator);
        let layers = mounted(folder.path(), "disk3.vhd");
        assert_eq!(layers.len(), 3);
        for (layer, (found, model)) in layers.iter().zip(&models).enumerate() {
            assert_same(found, model, &format!("{creator:?}, layer {layer}"));
        }
    }
}

#[test]
fn libvhdi_reads_a_chain_whose_leaf_was_relinked() {
    let folder = folder();
    let models = chain(folder.path(), Creator::XENSERVER);
    let at = |name: &str| folder.path().join(name);
    // What a collector does with the middle one: into its parent, then the child is its parent's.
    let base = VhdImage::open(host(&at("disk1.vhd"), false), None, OpenOptions::default());
    let base = Arc::new(base.expect("opened"));
    let mid = open_read_only(host(&at("disk2.vhd"), true), Some(Parent::vhd(&base)));
    let whole = block_types::ByteRange::new(ByteOffset::ZERO, ByteCount::new(SIZE));
    let mut own = Vec::new();
    let each = &mut |range| {
        own.push(range);
        std::ops::ControlFlow::Continue(())
    };
    mid.own_extents(whole, each).expect("read");
    for range in own {
        let mut bytes = vec![0; range.len.as_usize()];
        mid.read_at(&mut bytes, range.start).expect("read");
        base.write_at(&bytes, range.start).expect("written");
    }
    base.flush().expect("flushed");
    let leaf = VhdImage::open(
        host(&at("disk3.vhd"), false),
        Some(Parent::vhd(&mid)),
        OpenOptions::default(),
    );
    let leaf = leaf.expect("opened");
    leaf.relink(&link(1, "disk1.vhd")).expect("relinked");
    leaf.close().expect("closed");
    base.set_hidden(true).expect("hidden");
    base.close().expect("closed");
    fs::remove_file(at("disk2.vhd")).expect("removed");
    let layers = mounted(folder.path(), "disk3.vhd");
    assert_eq!(layers.len(), 2);
    assert_same(&layers[0], &models[1], "the base holds what the middle one did");
    assert_same(&layers[1], &models[2], "the leaf");
    for name in ["disk1.vhd", "disk3.vhd"] {
        let report = check(&*host(&at(name), true), None).expect("checked");
        assert_eq!(report.verdict(), Verdict::Sound, "{name}: {report:#?}");
    }
}

#[test]
fn libvhdi_tells_what_we_wrote() {
    let folder = folder();
    chain(folder.path(), Creator::XENSERVER);
    let said = libvhdi("vhdiinfo").arg(folder.path().join("disk3.vhd")).ok();
    for expected in ["Differential", &id(3).to_string(), &id(2).to_string(), "disk2.vhd"] {
        assert!(said.contains(expected), "{expected} is not in:\n{said}");
    }
    let path = folder.path().join("fixed.vhd");
    create_at(&path, &options(Content::Fixed, 1, SIZE, BLOCK), None).close().expect("closed");
    let said = libvhdi("vhdiinfo").arg(&path).ok();
    assert!(said.contains("Fixed") && said.contains(&SIZE.to_string()), "{said}");
}
