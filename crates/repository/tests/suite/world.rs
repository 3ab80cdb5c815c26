//! A directory whose power may fail.
//!
//! Its entries are sectors of a device of the same crash world as the files: making, renaming and
//! removing a file changes one sector, so a crash keeps any of them, each whole or not at all.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use block_io::{BlockDevice, CrashDevice, CrashWorld};
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};
use parking_lot::Mutex;
use repository::Folder;

const SLOT: usize = 512;

/// A directory in a crash world.
pub(crate) struct CrashFolder {
    world: Arc<CrashWorld>,
    directory: Arc<CrashDevice>,
    inodes: Mutex<Vec<Arc<CrashDevice>>>,
    /// How many slots were written so far: every entry has its number, the highest counts.
    slots: Mutex<u32>,
}

/// An entry: its slot, its number, its name, its inode.
#[derive(Clone, Debug)]
struct Entry {
    slot: usize,
    number: u32,
    name: String,
    inode: usize,
}

impl CrashFolder {
    /// A directory with these files.
    pub(crate) fn new(seed: u64, files: Vec<(String, Vec<u8>)>) -> Arc<Self> {
        let world = CrashWorld::new(seed);
        let mut bytes = Vec::new();
        for (inode, (name, _)) in files.iter().enumerate() {
            bytes.extend(slot_bytes(inode as u32 + 1, name, inode));
        }
        let slots = files.len() as u32;
        let directory = world.device("directory", bytes);
        let inodes = files.into_iter().map(|(name, bytes)| world.device(name, bytes)).collect();
        Arc::new(Self { world, directory, inodes: Mutex::new(inodes), slots: Mutex::new(slots) })
    }

    pub(crate) fn world(&self) -> &Arc<CrashWorld> {
        &self.world
    }

    /// The files after the crash, or if the power failed now.
    pub(crate) fn after_crash(&self, draw: u64) -> Vec<(String, Vec<u8>)> {
        let mut images = self.world.images(draw).into_iter();
        let (_, directory) = images.next().expect("the directory");
        let files: Vec<Vec<u8>> = images.map(|(_, bytes)| bytes).collect();
        let found = entries(&directory);
        found.into_iter().map(|entry| (entry.name, files[entry.inode].clone())).collect()
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        let mut bytes = vec![0; self.directory.size().as_usize()];
        self.directory.read_at(&mut bytes, ByteOffset::ZERO)?;
        Ok(entries(&bytes))
    }

    fn entry(&self, name: &str) -> Result<Entry> {
        let found = self.entries()?.into_iter().find(|entry| entry.name == name);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, name, "there is no such file"))
    }

    fn write_slot(&self, slot: usize, bytes: &[u8]) -> Result<()> {
        self.directory.write_at(bytes, ByteOffset::new((slot * SLOT) as u64))
    }

    fn next_number(&self) -> u32 {
        let mut slots = self.slots.lock();
        *slots += 1;
        *slots
    }
}

fn slot_bytes(number: u32, name: &str, inode: usize) -> Vec<u8> {
    let mut bytes = vec![0; SLOT];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..8].copy_from_slice(&(inode as u32).to_le_bytes());
    bytes[8] = name.len() as u8;
    bytes[9..9 + name.len()].copy_from_slice(name.as_bytes());
    bytes
}

fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    for (slot, bytes) in bytes.chunks_exact(SLOT).enumerate() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        if word(0) == 0 {
            continue;
        }
        let name = String::from_utf8(bytes[9..9 + bytes[8] as usize].to_vec()).expect("text");
        let entry = Entry { slot, number: word(0), name, inode: word(4) as usize };
        match found.iter_mut().find(|other| other.name == entry.name) {
            Some(other) if other.number < entry.number => *other = entry,
            Some(_) => {}
            None => found.push(entry),
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

impl Folder for CrashFolder {
    fn name(&self) -> &str {
        "sr"
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.entries()?.into_iter().map(|entry| entry.name).collect())
    }

    fn open(&self, file: &str, _read_only: bool) -> Result<Arc<dyn BlockDevice>> {
        let entry = self.entry(file)?;
        Ok(self.inodes.lock()[entry.inode].clone())
    }

    fn create(&self, file: &str) -> Result<Arc<dyn BlockDevice>> {
        if self.entry(file).is_ok() {
            return Err(Error::new(ErrorKind::Exists, file, "exists"));
        }
        let mut inodes = self.inodes.lock();
        let device = self.world.device(file, Vec::new());
        inodes.push(device.clone());
        let slot = self.directory.size().as_usize() / SLOT;
        self.directory.resize(ByteCount::new(((slot + 1) * SLOT) as u64))?;
        // That the directory has grown is no part of what may be lost.
        self.directory.flush()?;
        self.write_slot(slot, &slot_bytes(self.next_number(), file, inodes.len() - 1))?;
        Ok(device)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let entry = self.entry(from)?;
        self.write_slot(entry.slot, &slot_bytes(self.next_number(), to, entry.inode))
    }

    fn remove(&self, file: &str) -> Result<()> {
        // Entries of the same name that were replaced would come back.
        while let Ok(entry) = self.entry(file) {
            self.write_slot(entry.slot, &[0; SLOT])?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.directory.flush()
    }

    fn free(&self) -> Result<Option<ByteCount>> {
        Ok(None)
    }

    fn taken(&self, file: &str) -> Result<ByteCount> {
        Ok(self.open(file, true)?.size())
    }

    fn modified(&self, _file: &str) -> Result<SystemTime> {
        Ok(UNIX_EPOCH + Duration::from_secs(1_800_000_000))
    }
}
