//! The table that the records of a log add up to.

use std::collections::BTreeMap;

use block_types::{Error, ErrorKind, Result};

use super::{Record, RecordedChange};
use crate::{NodeName, SnapshotName, VolumeName};

/// The names of a pool's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    volumes: BTreeMap<VolumeName, VolumeEntry>,
}

/// A volume as its name's records describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its device.
    pub id: u32,
    /// Its size in bytes.
    pub size: u64,
    /// When it was made, in RFC 3339.
    pub created: String,
    /// The pool's transaction id when its device was made: tells the device from another that got
    /// the same number later.
    pub born: u64,
    /// The snapshot that it is a clone of.
    pub parent: Option<String>,
    /// Its snapshots, the oldest first.
    pub snapshots: Vec<SnapshotEntry>,
}

/// A snapshot as its name's records describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Its name.
    pub name: SnapshotName,
    /// Its device.
    pub id: u32,
    /// Its size in bytes.
    pub size: u64,
    /// When it was taken, in RFC 3339.
    pub created: String,
    /// As [`VolumeEntry::born`].
    pub born: u64,
}

impl Names {
    /// The table that `records` add up to.
    ///
    /// # Errors
    /// `Corrupt` where a record speaks of what the ones before it do not know.
    pub fn replay(records: &[Record]) -> Result<Self> {
        let mut names = Self::default();
        for record in records {
            names.apply(record)?;
        }
        Ok(names)
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> &BTreeMap<VolumeName, VolumeEntry> {
        &self.volumes
    }

    /// A volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &VolumeName) -> Result<&VolumeEntry> {
        self.volumes.get(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("volume {name}"), "there is no such volume")
                .advise("'firn volume list' shows what there is")
        })
    }

    /// A snapshot of a volume.
    ///
    /// # Errors
    /// `NotFound` for either.
    pub fn snapshot(&self, volume: &VolumeName, name: &SnapshotName) -> Result<&SnapshotEntry> {
        let entry = self.volume(volume)?;
        entry.snapshots.iter().find(|snapshot| snapshot.name == *name).ok_or_else(|| {
            let object = format!("snapshot {volume}@{name}");
            Error::new(ErrorKind::NotFound, object, "there is no such snapshot")
                .advise("'firn snapshot list' shows what there is")
        })
    }

    /// Device and size of a node.
    pub fn node(&self, node: &NodeName) -> Result<(u32, u64)> {
        match &node.snapshot {
            None => self.volume(&node.volume).map(|entry| (entry.id, entry.size)),
            Some(name) => self.snapshot(&node.volume, name).map(|entry| (entry.id, entry.size)),
        }
    }

    /// Checks that a volume's name is free.
    ///
    /// # Errors
    /// `Exists`.
    pub fn check_free(&self, name: &VolumeName) -> Result<()> {
        if self.volumes.contains_key(name) {
            let object = format!("volume {name}");
            return Err(Error::new(ErrorKind::Exists, object, "there is such a volume already")
                .advise("choose another name"));
        }
        Ok(())
    }

    /// Applies one record.
    pub fn apply(&mut self, record: &Record) -> Result<()> {
        // The device is made before the transaction id moves on, in the same commit.
        let born = record.transaction.saturating_sub(1);
        let created = record.at.clone();
        match &record.change {
            RecordedChange::Create { name, id, size } => {
                self.check_free(name)?;
                let entry = VolumeEntry {
                    id: *id,
                    size: *size,
                    created,
                    born,
                    parent: None,
                    snapshots: Vec::new(),
                };
                self.volumes.insert(name.clone(), entry);
            }
            RecordedChange::Snapshot { volume, name, id, size } => {
                let entry =
                    SnapshotEntry { name: name.clone(), id: *id, size: *size, created, born };
                self.volume_mut(volume)?.snapshots.push(entry);
            }
            RecordedChange::Clone { volume, snapshot, name, id, size } => {
                self.check_free(name)?;
                let entry = VolumeEntry {
                    id: *id,
                    size: *size,
                    created,
                    born,
                    parent: Some(format!("{volume}@{snapshot}")),
                    snapshots: Vec::new(),
                };
                self.volumes.insert(name.clone(), entry);
            }
            RecordedChange::Rollback { volume, snapshot } => {
                let size = self.snapshot(volume, snapshot)?.size;
                self.volume_mut(volume)?.size = size;
            }
            RecordedChange::Resize { volume, size } => self.volume_mut(volume)?.size = *size,
            RecordedChange::Name { name, id, size, born } => {
                self.check_free(name)?;
                let entry = VolumeEntry {
                    id: *id,
                    size: *size,
                    created,
                    born: *born,
                    parent: None,
                    snapshots: Vec::new(),
                };
                self.volumes.insert(name.clone(), entry);
            }
            RecordedChange::Rename { volume, name } => self.rename(volume, name)?,
            RecordedChange::Delete { volume } => {
                self.volume(volume)?;
                self.volumes.remove(volume);
            }
            RecordedChange::DeleteSnapshot { volume, snapshot } => {
                self.snapshot(volume, snapshot)?;
                self.volume_mut(volume)?.snapshots.retain(|entry| entry.name != *snapshot);
            }
        }
        Ok(())
    }

    /// Forgets names whose device `is_alive` (device, transaction of its birth) does not know, and
    /// returns them: somebody else has deleted those devices.
    pub fn forget_dead(&mut self, is_alive: impl Fn(u32, u64) -> bool) -> Vec<String> {
        let mut dead = Vec::new();
        self.volumes.retain(|name, entry| {
            entry.snapshots.retain(|snapshot| {
                let alive = is_alive(snapshot.id, snapshot.born);
                if !alive {
                    dead.push(format!("{name}@{}", snapshot.name));
                }
                alive
            });
            let alive = is_alive(entry.id, entry.born);
            if !alive {
                dead.push(name.to_string());
                dead.extend(
                    entry.snapshots.iter().map(|snapshot| format!("{name}@{}", snapshot.name)),
                );
            }
            alive
        });
        dead
    }

    /// The devices that have names.
    pub fn devices(&self) -> impl Iterator<Item = u32> + '_ {
        self.volumes.values().flat_map(|entry| {
            std::iter::once(entry.id).chain(entry.snapshots.iter().map(|snapshot| snapshot.id))
        })
    }

    /// The name of a device.
    pub fn name_of(&self, id: u32) -> Option<NodeName> {
        self.volumes.iter().find_map(|(name, entry)| {
            let named = |snapshot| Some(NodeName { volume: name.clone(), snapshot });
            if entry.id == id {
                return named(None);
            }
            let snapshot = entry.snapshots.iter().find(|snapshot| snapshot.id == id)?;
            named(Some(snapshot.name.clone()))
        })
    }

    /// Gives a volume another name; clones of its snapshots know their parent by it.
    fn rename(&mut self, old: &VolumeName, new: &VolumeName) -> Result<()> {
        self.check_free(new)?;
        self.volume(old)?;
        let before = format!("{old}@");
        for entry in self.volumes.values_mut() {
            if let Some(snapshot) = entry.parent.as_deref().and_then(|it| it.strip_prefix(&before))
            {
                entry.parent = Some(format!("{new}@{snapshot}"));
            }
        }
        let entry = self.volumes.remove(old);
        self.volumes.extend(entry.map(|entry| (new.clone(), entry)));
        Ok(())
    }

    fn volume_mut(&mut self, name: &VolumeName) -> Result<&mut VolumeEntry> {
        self.volume(name)?;
        self.volumes.get_mut(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("volume {name}"), "there is no such volume")
        })
    }
}
