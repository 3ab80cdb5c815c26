//! The table that the records of a log add up to.

use std::collections::BTreeMap;

use block_types::{Error, ErrorKind, Result};

use super::origin::UnnamedOrigins;
use super::{OriginEntry, Record, RecordedChange};
use crate::{NodeName, SnapshotName, VolumeName};

/// The names of a pool's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    volumes: BTreeMap<VolumeName, VolumeEntry>,
    unnamed: UnnamedOrigins,
}

/// What the names know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownNode {
    pub(crate) id: u32,
    pub(crate) size: u64,
    pub(crate) origin: Option<OriginEntry>,
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
    /// What shows where it maps nothing.
    pub origin: Option<OriginEntry>,
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
    /// As [`VolumeEntry::origin`].
    pub origin: Option<OriginEntry>,
}

impl VolumeEntry {
    /// A volume of its own.
    fn new(id: u32, size: u64, created: String, born: u64) -> Self {
        Self { id, size, created, born, parent: None, origin: None, snapshots: Vec::new() }
    }
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

    /// Whether nothing is known of any device.
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.unnamed.all().next().is_none()
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

    /// What is known of a node.
    pub(crate) fn known(&self, node: &NodeName) -> Result<KnownNode> {
        let (id, size) = self.node(node)?;
        let origin = match &node.snapshot {
            None => self.volume(&node.volume)?.origin.clone(),
            Some(name) => self.snapshot(&node.volume, name)?.origin.clone(),
        };
        Ok(KnownNode { id, size, origin })
    }

    /// All that stands on an external origin, with what it stands on. What has no name has no size
    /// of its own: it is as large as what it shows.
    pub(crate) fn over_origins(&self) -> impl Iterator<Item = (KnownNode, OriginEntry)> {
        let named = self.volumes.values().flat_map(|entry| {
            let snapshots = entry.snapshots.iter().map(|one| (one.id, one.size, &one.origin));
            std::iter::once((entry.id, entry.size, &entry.origin)).chain(snapshots)
        });
        let named = named.filter_map(|(id, size, origin)| Some((id, size, origin.as_ref()?)));
        let unnamed = self.unnamed.all().map(|(id, origin)| (id, origin.shown, origin));
        named.chain(unnamed).map(|(id, size, origin)| {
            (KnownNode { id, size, origin: Some(origin.clone()) }, origin.clone())
        })
    }

    /// What a device shows where it maps nothing, whether it has a name or not.
    pub(crate) fn origin_of(&self, id: u32) -> Option<&OriginEntry> {
        let named = self.volumes.values().find_map(|entry| {
            if entry.id == id {
                return entry.origin.as_ref();
            }
            entry.snapshots.iter().find(|snapshot| snapshot.id == id)?.origin.as_ref()
        });
        named.or_else(|| self.unnamed.get(id))
    }

    /// Whether it is known of a device without a name that it stands on an origin.
    pub(crate) fn is_unnamed_over_origin(&self, id: u32) -> bool {
        self.unnamed.get(id).is_some()
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
                self.add(name, VolumeEntry::new(*id, *size, created, born))?;
            }
            RecordedChange::CreateOver { name, id, size, origin, shown } => {
                let origin = origin.clone();
                let origin = OriginEntry { origin, shown: *shown, family: record.transaction };
                let entry = VolumeEntry::new(*id, *size, created, born);
                self.add(name, VolumeEntry { origin: Some(origin), ..entry })?;
            }
            RecordedChange::Snapshot { volume, name, id, size } => {
                let (name, id, size) = (name.clone(), *id, *size);
                let volume = self.volume_mut(volume)?;
                let origin = volume.origin.clone();
                volume.snapshots.push(SnapshotEntry { name, id, size, created, born, origin });
            }
            RecordedChange::Clone { volume, snapshot, name, id, size } => {
                let origin = self
                    .volumes
                    .get(volume)
                    .and_then(|entry| entry.snapshots.iter().find(|one| one.name == *snapshot))
                    .and_then(|entry| entry.origin.clone());
                let parent = Some(format!("{volume}@{snapshot}"));
                let entry = VolumeEntry::new(*id, *size, created, born);
                self.add(name, VolumeEntry { parent, origin, ..entry })?;
            }
            RecordedChange::Rollback { volume, snapshot } => {
                let SnapshotEntry { size, origin, .. } = self.snapshot(volume, snapshot)?.clone();
                let volume = self.volume_mut(volume)?;
                (volume.size, volume.origin) = (size, origin);
            }
            RecordedChange::Resize { volume, size } => {
                let volume = self.volume_mut(volume)?;
                volume.size = *size;
                if let Some(origin) = &mut volume.origin {
                    origin.shown = origin.shown.min(*size);
                }
            }
            RecordedChange::Name { name, id, size, born } => {
                self.check_free(name)?;
                let origin = self
                    .unnamed
                    .remove(*id)
                    .map(|origin| OriginEntry { shown: origin.shown.min(*size), ..origin });
                let entry = VolumeEntry::new(*id, *size, created, *born);
                self.add(name, VolumeEntry { origin, ..entry })?;
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
            RecordedChange::Inherit { id, of } => {
                if let Some(origin) = self.origin_of(*of).cloned() {
                    self.unnamed.insert(*id, born, origin);
                }
            }
            RecordedChange::Disinherit { id } => drop(self.unnamed.remove(*id)),
            RecordedChange::Free { ids } => self.free(ids),
            RecordedChange::Merge { volume, shown } => {
                if let Some(origin) = &mut self.volume_mut(volume)?.origin {
                    origin.shown = *shown;
                }
            }
        }
        Ok(())
    }

    /// Forgets names whose device `is_alive` (device, transaction of its birth) does not know, and
    /// returns them: somebody else has deleted those devices.
    pub fn forget_dead(&mut self, is_alive: impl Fn(u32, u64) -> bool) -> Vec<String> {
        self.unnamed.forget_dead(&is_alive);
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

    /// Adds a volume.
    fn add(&mut self, name: &VolumeName, entry: VolumeEntry) -> Result<()> {
        self.check_free(name)?;
        self.volumes.insert(name.clone(), entry);
        Ok(())
    }

    /// The devices stand on no origin any more.
    fn free(&mut self, ids: &[u32]) {
        for entry in self.volumes.values_mut() {
            if ids.contains(&entry.id) {
                entry.origin = None;
            }
            for snapshot in entry.snapshots.iter_mut().filter(|one| ids.contains(&one.id)) {
                snapshot.origin = None;
            }
        }
        for id in ids {
            self.unnamed.remove(*id);
        }
    }

    fn volume_mut(&mut self, name: &VolumeName) -> Result<&mut VolumeEntry> {
        self.volume(name)?;
        self.volumes.get_mut(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("volume {name}"), "there is no such volume")
        })
    }
}
