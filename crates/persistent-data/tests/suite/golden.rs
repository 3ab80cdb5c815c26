//! Metadata that the Linux kernel and the thin-provisioning tools wrote. What the hashes are taken
//! over is said in `tests/fixtures/README.md`; they come from an independent decoder.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use persistent_data::btree;
use persistent_data::{BLOCK_SIZE, BlockStore, MetaBlock, identify, verify};

use crate::recount::{Recount, metadata_counts};
use crate::world::{World, entries, mapping, read_superblock};

/// The image of a fixture.
pub(crate) fn fixture(name: &str) -> Arc<dyn BlockDevice> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.md.gz"));
    let output = Command::new("gzip").arg("-dc").arg(path).output().expect("gzip is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Arc::new(MemoryDevice::from_bytes(name, output.stdout))
}

fn sha256(text: &str) -> String {
    let mut command = Command::new("sha256sum");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(text.as_bytes()).expect("sha256sum reads");
    drop(input);
    let output = child.wait_with_output().expect("sha256sum ends");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

fn lines(pairs: impl IntoIterator<Item = (u64, u32)>) -> String {
    pairs.into_iter().fold(String::new(), |mut text, (block, count)| {
        writeln!(text, "{block} {count}").expect("text");
        text
    })
}

/// `<device> <virtual block> <data block> <time>` for every mapping.
fn mapping_lines(world: &World) -> String {
    let mut text = String::new();
    for (id, root) in entries::<MetaBlock>(&world.txn, world.mappings).expect("top level") {
        for (block, value) in entries::<u64>(&world.txn, root).expect("mappings") {
            let (data, time) = (value >> 24, value & 0xFF_FFFF);
            writeln!(text, "{id} {block} {data} {time}").expect("text");
        }
    }
    text
}

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Fixture, and the hashes of its mappings, data counts and metadata counts.
const EXPECTED: [[&str; 4]; 8] = [
    [
        "k61-m0.fresh",
        EMPTY,
        EMPTY,
        "fc568a25fad8db9b61c1ab3d50210b107f0833b65b1e77190d9eab821dc4b4b1",
    ],
    [
        "k61-m1.thin",
        "10850f9a2ebe87739b7eb1dbc5fd8852c16f62cc5da8325b1ddb446f40026d34",
        "49dc6118a8f73d3b302ef81be76985a26fff6a886e9d1fd614d71046cf94287d",
        "421126a94dcafc37a4d2a28a943a33be1613ca4f7e51a48d4ba464420d18e203",
    ],
    [
        "k61-m2.snaps",
        "c585a8dc8db1c8dd977e8c1c6ddac77f3c7ccad056008fb001f81a5b8adfff23",
        "ef59accb4a934ed03d359f34667d174601b04667a869d1aea817567d5201de94",
        "94eb6cc056f8e3e1413cafe52f11985b192b97863e9e08e7874f6c824c1ede1f",
    ],
    [
        "k61-oom",
        "52f9d4757b10cdae916c654fb7cb527af4f93e53e118aa905dd95e43cfcc82cb",
        "cb9723afb3f51229551f272d5df7353d899ab4881eb57aabe2f5db4061abdf40",
        "811ce0d7b9e76f752ae80772c6d4ff22aa8740305961255d6362ee06747d8f31",
    ],
    [
        "k61-grown",
        "f308288a9b5929e3c26079db35f31a5ce5486d4a1e7f8869df3877a216918f42",
        "50e7f26e219651ed22b76072a6c9e3819893ee4c744fdec4768df95f4d09b53a",
        "86f60ad24a32b9b4647ea1ab9f1154fb486d8f53632ed7ba9aac3d0bb5edece0",
    ],
    [
        "k61-ov",
        "47d899e7f4b3334fd512ab5536d5aa6ec222cb920b4c3f75e2e13f6dfc613f0f",
        "14562c5377df020ab65afdfa66681b8e5d71fec33e79ad2ed8c1de18ac144bfc",
        "9ac71d502a121a95ba2b440a891dfcfc1eca41ea8159a16d190af1a8fca9574f",
    ],
    [
        "tpt09-restored",
        "17fb755620ecc9f38c55f252f00515a35c5a8c602745b88be4a7e865ae07ce4f",
        "95a606b5c89eb4681f225bdebeb4cb2bdbec12e3e34b51058de601ddd6b60f2a",
        "f8472077e62b0b819da79e755d2b84fd1b9e046ad57aba25e03707fc594a95f5",
    ],
    [
        "tpt133-restored",
        "17fb755620ecc9f38c55f252f00515a35c5a8c602745b88be4a7e865ae07ce4f",
        "95a606b5c89eb4681f225bdebeb4cb2bdbec12e3e34b51058de601ddd6b60f2a",
        "1b305fbd06f718345e6362e0872172aac2ba0504e82e8d24516b050bb517f2e8",
    ],
];

#[test]
fn reads_what_the_peers_wrote() {
    for [name, mappings, data, metadata] in EXPECTED {
        let world = World::open(fixture(name)).expect(name);
        assert_eq!(sha256(&mapping_lines(&world)), mappings, "{name}: mappings");
        assert_eq!(sha256(&lines(world.data.counts().used())), data, "{name}: data counts");
        assert_eq!(
            sha256(&lines(metadata_counts(&world.txn))),
            metadata,
            "{name}: metadata counts"
        );
    }
}

/// The kernel counts metadata blocks as we do: one for each parent. (Its data counts of three
/// images are known to be wrong; see the fixtures' own notes.)
#[test]
fn counts_as_the_kernel_counts() {
    for [name, ..] in EXPECTED {
        let device = fixture(name);
        let store = Arc::new(BlockStore::new(Arc::clone(&device), 64));
        let world = World::open(Arc::clone(&device)).expect(name);
        let superblock = read_superblock(&*device).expect(name);
        let recount = Recount::of(&store, &superblock).expect(name);
        assert_eq!(metadata_counts(&world.txn), recount.metadata, "{name}");
        if !["k61-oom", "k61-grown", "k61-ov"].contains(&name) {
            assert_eq!(
                world.data.counts().used().collect::<Vec<_>>(),
                Vec::from_iter(recount.data)
            );
        }
    }
}

#[test]
fn every_reachable_block_is_identified_and_sealed() {
    let device = fixture("k61-m2.snaps");
    let store = Arc::new(BlockStore::new(Arc::clone(&device), 64));
    let superblock = read_superblock(&*device).expect("superblock");
    let recount = Recount::of(&store, &superblock).expect("recount");
    for &number in recount.metadata.keys() {
        let at = MetaBlock::new(number);
        let mut block = [0; BLOCK_SIZE];
        device.read_at(&mut block, at.offset().expect("small")).expect("read");
        let kind = identify(&block).expect("known kind");
        verify(&block, kind, at).expect("sealed for its place");
    }
}

/// A pool of the kernel, changed by us in every way: counts stay exact.
#[test]
fn goes_on_where_the_kernel_stopped() {
    for name in ["k61-m0.fresh", "k61-m2.snaps", "tpt09-restored", "tpt133-restored"] {
        let mut world = World::open(fixture(name)).expect(name);
        let before = world.contents().expect("contents");
        world.create(100).expect("create");
        let blocks = world.data.counts().free_runs().last().expect("free").start;
        let changes: Vec<_> = (0..1000).map(|i| (i * 3, Some(mapping(blocks + i)))).collect();
        world.map(100, &changes).expect("map");
        world.snapshot(100, 101).expect("snapshot");
        for &id in before.keys().take(1) {
            world.map(id, &changes[..40]).expect("map shared");
            world.snapshot(id, 102).expect("snapshot");
        }
        world.commit().expect("commit");
        let after = world.contents().expect("contents");
        assert_eq!(after[&100], changes.iter().map(|&(k, v)| (k, v.unwrap() >> 24)).collect());
        assert_eq!(after[&101], after[&100]);
        for (id, map) in before.iter().skip(1) {
            assert_eq!(&after[id], map, "{name}: volume {id} changed");
        }
        let superblock = read_superblock(&*world.device).expect("superblock");
        let store = Arc::new(BlockStore::new(Arc::clone(&world.device), 64));
        let recount = Recount::of(&store, &superblock).expect("recount");
        assert_eq!(metadata_counts(&world.txn), recount.metadata, "{name}");
        assert_eq!(world.data.counts().used().collect::<Vec<_>>(), Vec::from_iter(recount.data));
    }
}

#[test]
fn looks_up_single_keys() {
    let world = World::open(fixture("k61-m2.snaps")).expect("open");
    let root: MetaBlock = btree::lookup(&world.txn, world.mappings, 1).expect("top").expect("1");
    let value = |key| btree::lookup::<u64>(&world.txn, root, key).expect("lookup");
    assert_eq!(value(0), Some(mapping(0)));
    assert_eq!(value(1), Some(mapping(301) | 1));
    assert_eq!(value(299), Some(mapping(299)));
    assert_eq!(value(300), None);
}
