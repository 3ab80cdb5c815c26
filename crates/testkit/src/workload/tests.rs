//! The workload on volumes that are copied in full, which cannot be wrong; and on ones that are.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, Result};

use super::{Operation, Shape, Volumes, Workload, run};
use crate::oracle::Oracle;

/// Volumes in memory, each of its own.
#[derive(Default)]
struct Copies {
    devices: BTreeMap<String, Arc<MemoryDevice>>,
    /// Snapshots share their origin's bytes, as if nobody had copied before writing.
    share: bool,
    /// Rolling back does nothing.
    forget_rollback: bool,
}

impl Copies {
    fn copy(&mut self, from: &str, to: &str) {
        let from = &self.devices[from];
        let copy = if self.share {
            Arc::clone(from)
        } else {
            Arc::new(MemoryDevice::from_bytes(to, from.to_bytes()))
        };
        self.devices.insert(to.to_owned(), copy);
    }
}

impl Volumes for Copies {
    fn create(&mut self, name: &str, size: ByteCount) -> Result<()> {
        self.devices.insert(name.to_owned(), Arc::new(MemoryDevice::new(name, size)));
        Ok(())
    }

    fn snapshot(&mut self, origin: &str, name: &str) -> Result<()> {
        self.copy(origin, name);
        Ok(())
    }

    fn clone_volume(&mut self, snapshot: &str, name: &str) -> Result<()> {
        self.copy(snapshot, name);
        Ok(())
    }

    fn rollback(&mut self, volume: &str, snapshot: &str) -> Result<()> {
        if !self.forget_rollback {
            self.copy(snapshot, volume);
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.devices.remove(name);
        Ok(())
    }

    fn device(&mut self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::<MemoryDevice>::clone(&self.devices[name]))
    }
}

fn shape() -> Shape {
    Shape { size: ByteCount::new(1 << 20), block: ByteCount::new(64 << 10), most: 4, changes: 100 }
}

fn run_on(mut volumes: Copies, seed: u64) -> std::result::Result<(), super::Failure> {
    run(&mut volumes, &mut Oracle::new(), &mut Workload::new(seed, shape()), 600)
}

#[test]
fn right_volumes_pass() {
    for seed in 0..10 {
        run_on(Copies::default(), seed).unwrap();
    }
}

#[test]
fn wrong_volumes_are_found_by_every_seed() {
    for seed in 0..10 {
        let failure = run_on(Copies { share: true, ..Copies::default() }, seed).unwrap_err();
        assert!(failure.problem.contains("holds"), "{failure}");
        run_on(Copies { forget_rollback: true, ..Copies::default() }, seed).unwrap_err();
    }
}

#[test]
fn a_lost_write_is_found() {
    let mut volumes = Copies::default();
    let (mut oracle, mut workload) = (Oracle::new(), Workload::new(1, shape()));
    run(&mut volumes, &mut oracle, &mut workload, 300).unwrap();
    let name = oracle.volumes()[0].to_owned();
    let device = volumes.device(&name).unwrap();
    let mut sector = [0; 512];
    device.read_at(&mut sector, ByteOffset::new(4096)).unwrap();
    sector[100] ^= 1;
    device.write_at(&sector, ByteOffset::new(4096)).unwrap();
    assert!(super::compare_all(&mut volumes, &mut oracle).is_err());
}

#[test]
fn the_same_seed_is_the_same_workload() {
    let operations = |seed| {
        let (mut workload, mut oracle) = (Workload::new(seed, shape()), Oracle::new());
        oracle.create("v", shape().size);
        (0..50).map(|_| workload.next(&oracle)).collect::<Vec<Operation>>()
    };
    assert_eq!(operations(5), operations(5));
    assert_ne!(operations(5), operations(6));
}
