//! The tools for metadata against the thin tools: on every fixture, on generated pools, and on
//! input from hostile hands.

mod delta;
mod dump;
mod failures;
mod generated;
mod hostile;
mod ls;
mod pack;
pub(crate) mod pools;
mod restore;
mod rmap;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::ByteCount;
use dm_thin::{DeviceId, dump as dumping, ls as listing, restore as restoring};
use tempfile::TempDir;
use testkit::peer::peer;
use testkit::{fixture, thin_tools};

/// The images that Linux and the thin tools wrote.
const IMAGES: [&str; 8] = [
    "k61-m0.fresh",
    "k61-m1.thin",
    "k61-m2.snaps",
    "k61-oom",
    "k61-grown",
    "k61-ov",
    "tpt09-restored",
    "tpt133-restored",
];

/// Metadata in memory, and in a file for the thin tools.
pub(crate) struct Metadata {
    device: Arc<dyn BlockDevice>,
    folder: TempDir,
}

impl Metadata {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("metadata"), &bytes).expect("written");
        Self { device: Arc::new(MemoryDevice::from_bytes("metadata", bytes)), folder }
    }

    fn image(name: &str) -> Self {
        Self::new(fixture::bytes(&format!("thin/{name}.md.gz")))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("metadata")
    }

    pub(crate) fn dump(&self, options: &dumping::Options) -> String {
        let mut out = Vec::new();
        dumping::dump(Arc::clone(&self.device), options, &mut out).expect("dumped");
        String::from_utf8(out).expect("text")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.file()).expect("read")
    }

    /// The output of one of the thin tools.
    #[track_caller]
    fn peer(&self, tool: &str, args: &[&str]) -> String {
        peer(tool).args(args).arg(self.file()).ok()
    }
}

/// The mappings of every device, whoever shares them, as thin_dump 0.9 has them.
pub(crate) fn expanded() -> dumping::Options {
    dumping::Options { dialect: dumping::Dialect::Tools09, ..dumping::Options::default() }
}

/// The devices of a pool.
fn device_ids(metadata: &Metadata) -> Vec<DeviceId> {
    let listing = listing::list(metadata.device.clone(), dumping::View::Live, false);
    listing.expect("listed").rows.iter().map(|row| row.id).collect()
}

/// Device, guest block and data block of all mappings, ascending.
pub(crate) fn mappings(metadata: &Metadata) -> Vec<(u32, u64, u64)> {
    let xml = metadata.dump(&expanded());
    let mut device = 0;
    let mut found = Vec::new();
    for line in xml.lines() {
        let mut words = line.split('"').skip(1).step_by(2);
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        match line.trim_start().split(' ').next() {
            Some("<device") => device = number() as u32,
            Some("<single_mapping") => found.push((device, number(), number())),
            Some("<range_mapping") => {
                let (guest, data, len): (u64, u64, u64) = (number(), number(), number());
                found.extend((0..len).map(|block| (device, guest + block, data + block)));
            }
            _ => {}
        }
    }
    found.sort_unstable();
    found
}

/// Restores `xml` to a device of `size`, which `thin_check` has to find sound.
#[track_caller]
pub(crate) fn restored(xml: &str, size: u64) -> Metadata {
    let device = Arc::new(MemoryDevice::new("restored", ByteCount::new(size)));
    let overrides = restoring::Overrides::default();
    restoring::restore(xml.as_bytes(), device.clone(), &overrides).expect("restored");
    let metadata = Metadata::new(device.to_bytes());
    thin_tools::check(&metadata.file());
    metadata
}

/// Holds two texts against each other and shows where they first differ.
#[track_caller]
pub(crate) fn same(ours: &str, theirs: &str, what: &str) {
    if ours == theirs {
        return;
    }
    let lines = ours.lines().zip(theirs.lines());
    let differ = lines.enumerate().find(|(_, (one, other))| one != other);
    let (line, pair) = differ.unwrap_or((ours.lines().count(), ("", "")));
    panic!("{what}, line {}:\n  ours   {}\n  theirs {}", line + 1, pair.0, pair.1);
}
