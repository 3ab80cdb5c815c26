//! Linux 6.1 and Firn by turns at a volume that begins as an external origin, whose length is no
//! multiple of anything: each reads what the other wrote, and copied of the origin around it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset};
use dm_thin::{BlockSize, Change, ExternalOrigin, OpenOptions, Pool, ThinVolume};
use testkit::kernel::Kernel;
use testkit::rng::Rng;
use testkit::thin_tools;

use crate::common::{BLOCK, id};

const ORIGIN: u64 = (10 << 20) + 4096 + 512;
const THIN: u64 = 20 << 20;

struct Table {
    folder: tempfile::TempDir,
    rng: Rng,
    /// What each device holds, by its number.
    contents: Vec<Vec<u8>>,
}

impl Table {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rng = Rng::new(7);
        let mut origin = vec![0; ORIGIN as usize];
        rng.fill(&mut origin);
        fs::write(folder.path().join("origin"), &origin).expect("written");
        origin.resize(THIN as usize, 0);
        for (name, size) in [("metadata", 4 << 20), ("data", 64 << 20)] {
            File::create(folder.path().join(name)).expect("made").set_len(size).expect("sized");
        }
        let table = Self { folder, rng, contents: vec![origin] };
        let block = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
        Pool::format(&table.device("metadata", false), &*table.device("data", false), block)
            .expect("formatted");
        let pool = table.open();
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        pool.close().expect("closed");
        table
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn device(&self, name: &str, read_only: bool) -> Arc<dyn BlockDevice> {
        let options = FileOptions { cache: CacheMode::Cached, read_only };
        Arc::new(HostFile::open(&self.path(name), options).expect("opened"))
    }

    fn open(&self) -> Arc<Pool> {
        let (metadata, data) = (self.device("metadata", false), self.device("data", false));
        Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened")
    }

    fn volume(&self, pool: &Pool, number: usize) -> ThinVolume {
        let origin = ExternalOrigin::new(self.device("origin", true), ByteCount::new(ORIGIN));
        let (id, size) = (id(number as u32), ByteCount::new(THIN));
        pool.open_volume_over(id, "thin", size, false, Some(origin.expect("long enough")))
            .expect("opened")
    }

    /// A range to write; every other one lies about the end of the origin.
    fn place(&mut self, about_the_end: bool) -> (u64, Vec<u8>) {
        let at = match about_the_end {
            true => ORIGIN / 512 * 512 - self.rng.within(0..40) * 512,
            false => self.rng.within(0..THIN / 512 - 300) * 512,
        };
        let mut bytes = vec![0; (self.rng.within(1..200) * 512) as usize];
        self.rng.fill(&mut bytes);
        (at, bytes)
    }

    /// Every device reads as it should; then each is written, and the last gets a snapshot.
    fn firn(&mut self) {
        let pool = self.open();
        for number in 0..self.contents.len() {
            let volume = self.volume(&pool, number);
            let mut read = vec![0; THIN as usize];
            volume.read_at(&mut read, ByteOffset::ZERO).expect("read");
            let differs = read.iter().zip(&self.contents[number]).position(|(one, two)| one != two);
            assert_eq!(differs, None, "device {number}");
            for about_the_end in [false, true] {
                let (at, bytes) = self.place(about_the_end);
                volume.write_at(&bytes, ByteOffset::new(at)).expect("written");
                self.contents[number][at as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
        }
        let (new, origin) = (self.contents.len() as u32, self.contents.len() as u32 - 1);
        pool.change(&[Change::CreateSnapshot { id: id(new), origin: id(origin) }]).expect("made");
        self.contents.push(self.contents[origin as usize].clone());
        pool.close().expect("closed");
        thin_tools::check(&self.path("metadata"));
    }

    /// The same by the kernel, which also discards a block: what the origin holds shows again.
    fn linux(&mut self) {
        let mut script = format!(
            "set -e\ndmsetup create pool --table \"0 {} thin-pool /dev/ubda /dev/ubdb 128 0\"\n",
            (64 << 20) / 512
        );
        let mut patterns: Vec<u8> = Vec::new();
        for number in 0..self.contents.len() {
            fs::write(self.path(&format!("expected{number}")), &self.contents[number])
                .expect("written");
            script += &format!(
                "dmsetup create t --table \"0 {} thin /dev/mapper/pool {number} /dev/ubdc\"\n\
                 cmp /dev/mapper/t {}\n",
                THIN / 512,
                self.path(&format!("expected{number}")).display()
            );
            let block = self.rng.within(0..ORIGIN / BLOCK);
            script += &format!("blkdiscard -o {} -l {BLOCK} /dev/mapper/t\n", block * BLOCK);
            let origin = fs::read(self.path("origin")).expect("read");
            let range = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
            self.contents[number][range.clone()].copy_from_slice(&origin[range]);
            for about_the_end in [false, true] {
                let (at, bytes) = self.place(about_the_end);
                script += &format!(
                    "dd if=/dev/ubdd of=/dev/mapper/t bs=512 skip={} seek={} count={} \
                     oflag=direct status=none\n",
                    patterns.len() / 512,
                    at / 512,
                    bytes.len() / 512
                );
                self.contents[number][at as usize..][..bytes.len()].copy_from_slice(&bytes);
                patterns.extend_from_slice(&bytes);
            }
            script += "dmsetup remove t\n";
        }
        let (new, origin) = (self.contents.len(), self.contents.len() - 1);
        script += &format!("dmsetup message pool 0 \"create_snap {new} {origin}\"\n");
        self.contents.push(self.contents[origin].clone());
        script += "dmsetup remove pool\n";
        patterns.resize(patterns.len().max(1 << 20), 0);
        fs::write(self.path("patterns"), patterns).expect("written");
        Kernel::new()
            .disk(self.path("metadata"))
            .disk(self.path("data"))
            .read_only_disk(self.path("origin"))
            .disk(self.path("patterns"))
            .script(&script)
            .run()
            .expect("booted")
            .ok();
        thin_tools::check(&self.path("metadata"));
    }
}

#[test]
fn a_volume_over_an_origin_goes_to_the_kernel_and_back() {
    let mut table = Table::new();
    for _ in 0..2 {
        table.firn();
        table.linux();
    }
    table.firn();
}
