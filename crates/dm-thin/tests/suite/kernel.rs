//! Linux 6.1 and Firn take turns at one pool, three rounds each way it began: every device reads
//! the same to both, file systems mount, and what either writes and snapshots is there for the
//! other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset};
use dm_thin::{BlockSize, Change, DeviceId, OpenOptions, Pool, ThinVolume};
use testkit::kernel::Kernel;
use testkit::peer::peer;
use testkit::rng::Rng;
use testkit::thin_tools;

const BLOCK: u64 = 64 << 10;
const DATA: u64 = 256 << 20;
/// The raw volume, its snapshots and clones.
const RAW: u64 = 8 << 20;
/// The volume with a file system, and its snapshots.
const EXT4: u64 = 48 << 20;

/// What one device holds.
#[derive(Clone)]
struct Device {
    id: u32,
    content: Vec<u8>,
}

/// A pool in two files, and the oracle of its raw devices.
struct Table {
    folder: tempfile::TempDir,
    rng: Rng,
    raw: Vec<Device>,
    /// Devices with a file system, whose content only the sums of both sides compare.
    ext4: Vec<u32>,
    next: u32,
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).expect("24 bits")
}

impl Table {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, size) in [("metadata", 4 << 20), ("data", DATA)] {
            let file = File::create(folder.path().join(name)).expect("made");
            file.set_len(size).expect("sized");
        }
        let rng = Rng::new(seed);
        Self { folder, rng, raw: Vec::new(), ext4: Vec::new(), next: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn device(&self, name: &str) -> Arc<HostFile> {
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        Arc::new(HostFile::open(&self.path(name), options).expect("opened"))
    }

    fn open(&self) -> Arc<Pool> {
        let (metadata, data) = (self.device("metadata"), self.device("data"));
        Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened")
    }

    fn new_id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Firn's turn: everything is compared, then changed at random.
    fn firn(&mut self, sums: &[(u32, String)]) {
        let pool = self.open();
        let devices: Vec<u32> = pool.devices().iter().map(|(id, _)| id.get()).collect();
        let mut known: Vec<u32> = self.raw.iter().map(|device| device.id).collect();
        known.extend(&self.ext4);
        known.sort_unstable();
        assert_eq!(devices, known);
        for device in &self.raw {
            let volume = volume(&pool, device.id, RAW);
            assert!(read(&volume) == device.content, "device {} differs", device.id);
        }
        for (device, sum) in sums {
            let size = if self.ext4.contains(device) { EXT4 } else { RAW };
            let ours = sha256(&read(&volume(&pool, *device, size)));
            assert_eq!(ours, *sum, "device {device}");
        }
        self.write_raw(&pool);
        let snapshot = self.new_id();
        let origin = *self.rng.pick(&self.raw.iter().map(|device| device.id).collect::<Vec<_>>());
        pool.change(&[Change::CreateSnapshot { id: id(snapshot), origin: id(origin) }])
            .expect("made");
        self.copy(origin, snapshot);
        self.write_raw(&pool);
        if let Some(&origin) = self.ext4.first() {
            let snapshot = self.new_id();
            let change = Change::CreateSnapshot { id: id(snapshot), origin: id(origin) };
            pool.change(&[change]).expect("made");
            self.ext4.push(snapshot);
        }
        if self.raw.len() > 4 {
            let oldest = self.raw.remove(0).id;
            pool.change(&[Change::Delete(id(oldest))]).expect("deleted");
        }
        pool.close().expect("closed");
        self.check();
    }

    /// Writes and discards at random in every raw device.
    fn write_raw(&mut self, pool: &Pool) {
        for index in 0..self.raw.len() {
            let volume = volume(pool, self.raw[index].id, RAW);
            for _ in 0..6 {
                let at = self.rng.within(0..RAW / 512) * 512;
                let len = (self.rng.within(1..300) * 512).min(RAW - at);
                let mut bytes = vec![0; len as usize];
                self.rng.fill(&mut bytes);
                volume.write_at(&bytes, ByteOffset::new(at)).expect("written");
                self.raw[index].content[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
            let block = self.rng.within(0..RAW / BLOCK) * BLOCK;
            let range = block_types::ByteRange::new(ByteOffset::new(block), ByteCount::new(BLOCK));
            volume.discard(range).expect("discarded");
            self.raw[index].content[block as usize..(block + BLOCK) as usize].fill(0);
        }
    }

    fn copy(&mut self, origin: u32, copy: u32) {
        let device = self.raw.iter().find(|device| device.id == origin).expect("known").clone();
        self.raw.push(Device { id: copy, ..device });
    }

    /// The kernel's turn: sums of every device, then writes, snapshots and file systems.
    fn linux(&mut self) -> Vec<(u32, String)> {
        let (mut script, expected) = self.script();
        for device in self
            .raw
            .iter()
            .map(|device| (device.id, RAW))
            .chain(self.ext4.iter().map(|device| (*device, EXT4)))
        {
            script += &format!("sum {} {}\n", device.0, device.1 / 512);
        }
        script += "dmsetup remove pool\n";
        let output = Kernel::new()
            .disk(self.path("metadata"))
            .disk(self.path("data"))
            .disk(self.path("patterns"))
            .script(&script)
            .run()
            .expect("booted")
            .ok();
        self.raw = expected;
        self.check();
        output
            .lines()
            .filter_map(|line| line.strip_prefix("sum "))
            .map(|line| {
                let (device, sum) = line.split_once(' ').expect("device and sum");
                (device.parse().expect("a number"), sum.to_owned())
            })
            .collect()
    }

    /// What the kernel is to do, and what the raw devices hold then.
    fn script(&mut self) -> (String, Vec<Device>) {
        let mut script = format!(
            "set -e\n\
             sum() {{ dmsetup create t --table \"0 $2 thin /dev/mapper/pool $1\"; \
             echo sum $1 $(sha256sum /dev/mapper/t | cut -d' ' -f1); dmsetup remove t; }}\n\
             dmsetup create pool --table \"0 {} thin-pool /dev/ubda /dev/ubdb 128 0\"\n",
            DATA / 512
        );
        let mut patterns = Vec::new();
        for device in &mut self.raw {
            let at = self.rng.within(0..RAW / 4096 - 100);
            let count = self.rng.within(1..100);
            let mut bytes = vec![0; (count * 4096) as usize];
            self.rng.fill(&mut bytes);
            script += &format!(
                "dmsetup create t --table \"0 {} thin /dev/mapper/pool {}\"\n\
                 dd if=/dev/ubdc of=/dev/mapper/t bs=4096 skip={} seek={at} count={count} \
                 oflag=direct status=none\ndmsetup remove t\n",
                RAW / 512,
                device.id,
                patterns.len() / 4096
            );
            device.content[(at * 4096) as usize..][..bytes.len()].copy_from_slice(&bytes);
            patterns.extend_from_slice(&bytes);
        }
        patterns.resize(patterns.len().max(1 << 20), 0);
        fs::write(self.path("patterns"), patterns).expect("written");
        if self.raw.is_empty() {
            let raw = self.new_id();
            script += &format!("dmsetup message pool 0 \"create_thin {raw}\"\n");
            self.raw.push(Device { id: raw, content: vec![0; RAW as usize] });
        } else {
            let snapshot = self.new_id();
            let origin = self.raw[self.raw.len() - 1].id;
            script += &format!("dmsetup message pool 0 \"create_snap {snapshot} {origin}\"\n");
            self.copy(origin, snapshot);
        }
        script += &self.file_systems();
        (script, self.raw.clone())
    }

    /// Makes the file system in the first round; mounts and checks all of them in every round, and
    /// writes to the first.
    fn file_systems(&mut self) -> String {
        let sectors = EXT4 / 512;
        let mut script = String::new();
        if self.ext4.is_empty() {
            let device = self.new_id();
            self.ext4.push(device);
            script += &format!(
                "dmsetup message pool 0 \"create_thin {device}\"\n\
                 dmsetup create t --table \"0 {sectors} thin /dev/mapper/pool {device}\"\n\
                 mkfs.ext4 -q /dev/mapper/t\nmount /dev/mapper/t /mnt\n\
                 cp /bin/dash /mnt/dash; sha256sum /mnt/dash | cut -d' ' -f1 >/mnt/sum\n\
                 umount /mnt; dmsetup remove t\n"
            );
        }
        for (index, device) in self.ext4.iter().enumerate() {
            script += &format!(
                "dmsetup create t --table \"0 {sectors} thin /dev/mapper/pool {device}\"\n\
                 e2fsck -fn /dev/mapper/t >/dev/null\nmount /dev/mapper/t /mnt\n\
                 [ \"$(sha256sum /mnt/dash | cut -d' ' -f1)\" = \"$(cat /mnt/sum)\" ]\n"
            );
            if index == 0 {
                script += "head -c 3000000 /dev/urandom >/mnt/dash\n\
                           sha256sum /mnt/dash | cut -d' ' -f1 >/mnt/sum\n";
            }
            script += "umount /mnt; dmsetup remove t\n";
        }
        script
    }

    fn check(&self) {
        thin_tools::check(&self.path("metadata"));
        let report = dm_thin::check(self.device("metadata")).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    }
}

fn volume(pool: &Pool, device: u32, size: u64) -> ThinVolume {
    let name = format!("thin {device}");
    pool.open_volume(id(device), &name, ByteCount::new(size), false).expect("opened")
}

fn read(volume: &ThinVolume) -> Vec<u8> {
    let mut bytes = vec![0; volume.size().as_usize()];
    volume.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file: &Path = &folder.path().join("bytes");
    fs::write(file, bytes).expect("written");
    let line = peer("sha256sum").arg(file).ok();
    line.split(' ').next().expect("a sum").to_owned()
}

#[test]
fn a_pool_of_firn_goes_to_the_kernel_and_back_three_times() {
    let mut table = Table::new(1);
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    let metadata: Arc<dyn BlockDevice> = table.device("metadata");
    Pool::format(&metadata, &*table.device("data"), size).expect("formatted");
    let first = table.new_id();
    let pool = table.open();
    pool.change(&[Change::CreateThin(id(first))]).expect("made");
    pool.close().expect("closed");
    table.raw.push(Device { id: first, content: vec![0; RAW as usize] });
    table.firn(&[]);
    for _ in 0..3 {
        let sums = table.linux();
        table.firn(&sums);
    }
}

#[test]
fn a_pool_of_the_kernel_comes_to_firn_and_back_three_times() {
    let mut table = Table::new(2);
    for _ in 0..3 {
        let sums = table.linux();
        table.firn(&sums);
    }
    table.linux();
}
