//! Trees of images against the oracle: random writes, snapshots, clones and rollbacks, everything
//! read back, every file checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::vhd::common::{link, memory, open, open_read_only, options};
use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, Error, ErrorKind, Result};
use disk_image::vhd::{Content, CreateOptions, Creator, Parent, VhdImage, check};
use testkit::oracle::Oracle;
use testkit::rng::Rng;
use testkit::workload::{self, Shape, Volumes, Workload};

/// Bytes of a disk: whole blocks and a broken one.
const SIZE: u64 = 20 * BLOCK + 1536;
const BLOCK: u64 = 16 << 10;

struct Node {
    file: Arc<MemoryDevice>,
    image: Arc<VhdImage>,
    parent: Option<Parent>,
}

/// A snapshot turns a volume's file into one that is only read, over which the volume goes on.
struct Tree {
    nodes: BTreeMap<String, Node>,
    made: u8,
    creator: Creator,
    rng: Rng,
}

impl Tree {
    fn make(&mut self, content: Content) -> Arc<MemoryDevice> {
        self.made = self.made.checked_add(1).expect("few images");
        let plain = options(content, self.made, SIZE, BLOCK);
        memory("disk", &CreateOptions { creator: self.creator, ..plain })
    }

    fn grow_from(&mut self, parent: &Arc<VhdImage>) -> Node {
        let link = link(parent.id().bytes()[0], "parent.vhd");
        assert_eq!(link.id, Some(parent.id()));
        let file = self.make(Content::Differencing(link));
        let parent = Some(Parent::vhd(parent));
        Node { image: open(file.clone(), parent.clone()), file, parent }
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).ok_or_else(|| Error::new(ErrorKind::NotFound, name, "is not there"))
    }

    /// Closes a volume's image, checks it, and opens it again.
    fn reopen(&mut self, name: &str, read_only: bool) -> Result<()> {
        let node = self.nodes.get_mut(name).expect("there");
        node.image.close()?;
        let report = check(&*node.file, None)?;
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{name}: {report:#?}");
        let open = if read_only { open_read_only } else { open };
        node.image = open(node.file.clone(), node.parent.clone());
        Ok(())
    }
}

impl Volumes for Tree {
    fn create(&mut self, name: &str, _size: ByteCount) -> Result<()> {
        let file = self.make(Content::Dynamic);
        let image = open(file.clone(), None);
        self.nodes.insert(name.to_owned(), Node { file, image, parent: None });
        Ok(())
    }

    fn snapshot(&mut self, origin: &str, name: &str) -> Result<()> {
        self.reopen(origin, true)?;
        let base = self.nodes.remove(origin).expect("there");
        let child = self.grow_from(&base.image);
        self.nodes.insert(origin.to_owned(), child);
        self.nodes.insert(name.to_owned(), base);
        Ok(())
    }

    fn clone_volume(&mut self, snapshot: &str, name: &str) -> Result<()> {
        let base = Arc::clone(&self.node(snapshot)?.image);
        let child = self.grow_from(&base);
        self.nodes.insert(name.to_owned(), child);
        Ok(())
    }

    fn rollback(&mut self, volume: &str, snapshot: &str) -> Result<()> {
        self.clone_volume(snapshot, volume)
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        // Its children keep what they need of it.
        self.nodes.remove(name);
        Ok(())
    }

    fn device(&mut self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        if !self.node(name)?.image.limits().read_only && self.rng.chance(1, 20) {
            self.reopen(name, false)?;
        }
        Ok(self.node(name)?.image.clone())
    }
}

fn run(seed: u64) {
    let creator = if seed.is_multiple_of(3) { Creator::WINDOWS } else { Creator::XENSERVER };
    let mut tree = Tree { nodes: BTreeMap::new(), made: 0, creator, rng: Rng::new(seed) };
    let shape =
        Shape { size: ByteCount::new(SIZE), block: ByteCount::new(BLOCK), most: 5, changes: 60 };
    let mut oracle = Oracle::new();
    let mut workload = Workload::new(seed, shape);
    let done = workload::run(&mut tree, &mut oracle, &mut workload, 300);
    done.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    let volumes: Vec<String> = oracle.volumes().into_iter().map(str::to_owned).collect();
    for name in volumes {
        tree.reopen(&name, false).expect("closed");
    }
    workload::compare_all(&mut tree, &mut oracle)
        .unwrap_or_else(|problem| panic!("seed {seed}, reopened: {problem}"));
}

#[test]
fn trees_hold_what_the_oracle_says() {
    for seed in 0..120 {
        run(seed);
    }
}
