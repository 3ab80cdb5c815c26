//! Power failures at every operation of a hydration and of a merge, over the pool, its names and
//! the origin at once: the volume always reads the same, and another attempt comes to the end.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, Result};
use dm_thin::{BlockSize, Pool};

use super::merge::Target;
use crate::{NamesLog, NodeName, OriginSource, PoolDevices, PoolDirectory, VolumeName};

const BLOCK: u64 = 64 << 10;
/// The volume, and the origin, which is longer than what shows of it, and shorter than the volume.
const SIZE: u64 = 6 * BLOCK + 512;
const SHOWN: u64 = 3 * BLOCK + 1024;
const ORIGIN: u64 = 5 * BLOCK;

const NAMES: [&str; 4] = ["metadata", "data", "names", "origin"];

fn web() -> VolumeName {
    VolumeName::parse("web").expect("a name")
}

fn source() -> OriginSource {
    OriginSource { address: "memory".into(), format: Some("raw".into()), allow_backing: Vec::new() }
}

type Devices = [Arc<dyn BlockDevice>; 4];

fn open(devices: Devices) -> Result<(Arc<PoolDirectory>, Arc<dyn BlockDevice>)> {
    let [metadata, data, names, origin] = devices;
    let devices = PoolDevices { metadata, data, names: Some(names) };
    let options = dm_thin::OpenOptions { background: false, ..Default::default() };
    let pool = PoolDirectory::open_devices(Path::new("lab"), devices, options)?;
    pool.origins.lend(source(), Arc::clone(&origin));
    Ok((pool, origin))
}

fn read(pool: &PoolDirectory) -> Vec<u8> {
    let node = NodeName { volume: web(), snapshot: None };
    let device = pool.open_node(&node, true).expect("opened");
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

/// The devices, closed, and what the volume reads as.
fn prepared() -> ([Vec<u8>; 4], Vec<u8>) {
    let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(1 << 20)));
    let data = Arc::new(MemoryDevice::new("data", ByteCount::new(2 << 20)));
    let names = Arc::new(MemoryDevice::new("names", ByteCount::ZERO));
    let block = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    let device: Arc<dyn BlockDevice> = metadata.clone();
    Pool::format(&device, &*data, block).expect("formatted");
    NamesLog::format(names.clone()).expect("formatted");
    let base: Vec<u8> = (0..ORIGIN / 8).flat_map(|word| (word + 1).to_le_bytes()).collect();
    let origin = Arc::new(MemoryDevice::from_bytes("origin", base.clone()));
    let devices: Devices = [metadata.clone(), data.clone(), names.clone(), origin.clone()];
    let (pool, _) = open(devices).expect("opened");
    pool.create_volume_over(&web(), Some(ByteCount::new(SHOWN)), &source()).expect("made");
    pool.resize_volume(&web(), ByteCount::new(SIZE)).expect("grown");
    let node = NodeName { volume: web(), snapshot: None };
    let volume = pool.open_node(&node, false).expect("opened");
    let mut content = base;
    content.resize(SIZE as usize, 0);
    content[SHOWN as usize..].fill(0);
    for (at, byte) in [(BLOCK + 512, 7), (4 * BLOCK + 8192, 8), (6 * BLOCK, 9)] {
        volume.write_at(&[byte; 512], ByteOffset::new(at)).expect("written");
        content[at as usize..][..512].fill(byte);
    }
    assert_eq!(read(&pool), content);
    drop(volume);
    pool.close().expect("closed");
    drop(pool);
    ([metadata.to_bytes(), data.to_bytes(), names.to_bytes(), origin.to_bytes()], content)
}

/// Cuts `work` off at every operation, and takes it up again.
fn cut_off_everywhere(
    work: impl Fn(&Arc<PoolDirectory>, Arc<dyn BlockDevice>) -> Result<()>,
    done: impl Fn(&PoolDirectory, &dyn BlockDevice, &[u8]),
) {
    let (images, content) = prepared();
    let mut finished = false;
    for crash_at in 1.. {
        let world = CrashWorld::new(crash_at);
        let devices = std::array::from_fn(|device| {
            let device = world.device(NAMES[device], images[device].clone());
            device as Arc<dyn BlockDevice>
        });
        world.crash_at(crash_at);
        let outcome = open(devices).and_then(|(pool, origin)| work(&pool, origin));
        finished |= outcome.is_ok();
        for draw in 0..3 {
            let mut left = world.images(draw).into_iter();
            let devices = NAMES.map(|name| {
                let (_, bytes) = left.next().expect("an image");
                Arc::new(MemoryDevice::from_bytes(name, bytes)) as Arc<dyn BlockDevice>
            });
            let (pool, origin) = open(devices).expect("opened");
            assert!(read(&pool) == content, "cut off at {crash_at}, draw {draw}");
            let again = work(&pool, Arc::clone(&origin));
            again.unwrap_or_else(|error| panic!("resumed after {crash_at}: {error}"));
            assert!(read(&pool) == content, "resumed after {crash_at}, draw {draw}");
            assert!(pool.check().expect("checked").errors.is_empty());
            done(&pool, &*origin, &content);
        }
        if !world.crashed() {
            break;
        }
    }
    assert!(finished);
}

#[test]
fn a_hydration_may_be_cut_off_anywhere() {
    let work = |pool: &Arc<PoolDirectory>, _| {
        let mut hydration = pool.hydration(&web(), true)?;
        while hydration.step()?.is_some() {}
        Ok(())
    };
    cut_off_everywhere(work, |pool, _, _| {
        assert_eq!(pool.volume(&web()).expect("there").origin, None);
    });
}

#[test]
fn a_merge_may_be_cut_off_anywhere() {
    let work = |pool: &Arc<PoolDirectory>, origin| {
        let shown = pool.check_merge(&web(), false)?.shown;
        let target = Target::Device(origin);
        let mut merge = pool.merge_into(&web(), target, ByteCount::new(shown))?;
        while merge.step()?.is_some() {}
        Ok(())
    };
    cut_off_everywhere(work, |pool, origin, content| {
        assert_eq!(pool.volume(&web()).expect("there").mapped, 0);
        let mut bytes = vec![0; origin.size().as_usize()];
        origin.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        assert!(bytes == content, "the origin");
    });
}
