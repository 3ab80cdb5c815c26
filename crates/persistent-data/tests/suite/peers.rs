//! What `thin_check` and `thin_dump` of the thin-provisioning tools say about our metadata.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::ByteOffset;
use proptest::prelude::{ProptestConfig, proptest};

use crate::golden::fixture;
use crate::model::{Batch, Contents, Model, Op, memory, op};
use crate::world::{World, mapping};

/// Runs one of the tools on the content of `device`.
fn run(tool: &str, device: &dyn BlockDevice) -> Output {
    let mut image = vec![0; device.size().as_usize()];
    device.read_at(&mut image, ByteOffset::ZERO).expect("read");
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), image).expect("write");
    command(tool, file.path()).output().unwrap_or_else(|error| {
        panic!("{tool}: {error}; install the package thin-provisioning-tools")
    })
}

/// System tools are not always in an ordinary user's path.
fn command(tool: &str, file: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}:/usr/sbin:/sbin")).arg(tool).arg(file);
    command
}

fn accept(device: &dyn BlockDevice) {
    let output = run("thin_check", device);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "thin_check: {said}; is thin-provisioning-tools installed?");
}

/// The mappings in the XML of `thin_dump`.
fn dump(device: &dyn BlockDevice) -> Contents {
    let output = run("thin_dump", device);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut volumes = BTreeMap::new();
    let mut volume: Option<&mut BTreeMap<u64, u64>> = None;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let line = line.trim();
        if line.starts_with("<device ") {
            volume = Some(volumes.entry(attribute(line, "dev_id")).or_default());
        }
        let (key, data, len) = if line.starts_with("<single_mapping ") {
            (attribute(line, "origin_block"), attribute(line, "data_block"), 1)
        } else if line.starts_with("<range_mapping ") {
            let length = attribute(line, "length");
            (attribute(line, "origin_begin"), attribute(line, "data_begin"), length)
        } else {
            continue;
        };
        let map = volume.as_mut().expect("mappings are inside a device");
        map.extend((0..len).map(|i| (key + i, data + i)));
    }
    volumes
}

fn attribute(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!(" {name}=\"")).expect("the attribute is there");
    rest.split('"').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn accept_an_empty_pool() {
    let world = World::format(memory(1024), 4096).expect("format");
    accept(&*world.device);
    assert!(dump(&*world.device).is_empty());
}

#[test]
fn accept_what_we_make_of_the_kernels_pools() {
    for name in ["k61-m0.fresh", "k61-m2.snaps", "tpt09-restored", "tpt133-restored"] {
        let mut world = World::open(fixture(name)).expect(name);
        world.create(100).expect("create");
        let free = world.data.counts().free_runs().last().expect("free").start;
        let changes: Vec<_> = (0..2000).map(|i| (i * 2, Some(mapping(free + i)))).collect();
        world.map(100, &changes).expect("map");
        world.snapshot(100, 101).expect("snapshot");
        world
            .map(101, &changes[500..900].iter().map(|&(key, _)| (key, None)).collect::<Vec<_>>())
            .expect("unmap");
        world.commit().expect("commit");
        accept(&*world.device);
        assert_eq!(dump(&*world.device), world.contents().expect("contents"), "{name}");
    }
}

#[test]
fn accept_every_size_of_tree() {
    let mut model = Model::new(memory(8192), 400_000);
    model.run(&Op::Create).expect("create");
    for batch in [
        Batch::Append { len: 252 },
        Batch::Append { len: 1 },
        Batch::Append { len: 30_000 },
        Batch::Thin { step: 150 },
        Batch::Fill { start: 7, len: 3000, step: 3 },
        Batch::Cut { start: 0, len: 29_000 },
        Batch::Cut { start: 0, len: 40_000 },
    ] {
        model.run(&Op::Snapshot(usize::MAX)).expect("snapshot");
        model.run(&Op::Map(0, batch)).expect("map");
        model.commit();
        accept(&*model.world.device);
        assert_eq!(dump(&*model.world.device), model.volumes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 50, ..Default::default() })]

    #[test]
    fn accept_random_work(ops in proptest::collection::vec(op(), 5..30)) {
        let mut model = Model::new(memory(8192), 400_000);
        model.run(&Op::Create).expect("create");
        ops.iter().try_for_each(|op| model.run(op)).expect("the pool is large enough");
        model.commit();
        accept(&*Arc::clone(&model.world.device));
        assert_eq!(dump(&*model.world.device), model.volumes);
    }
}
