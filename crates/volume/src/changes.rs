//! Changing volumes and snapshots by name.

use std::sync::atomic::Ordering;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use dm_thin::{Change, DeviceId};
use jiff::Timestamp;

use crate::directory::State;
use crate::{
    Names, NamesLog, NodeName, PoolDirectory, Record, RecordedChange, SnapshotInfo, SnapshotName,
    VolumeInfo, VolumeName,
};

impl PoolDirectory {
    /// Makes an empty volume.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for a size of 0.
    pub fn create_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        check_size(name, size)?;
        self.transact(|names| {
            names.check_free(name)?;
            let id = self.free_id()?;
            let change =
                RecordedChange::Create { name: name.clone(), id: id.get(), size: size.get() };
            Ok((change, vec![Change::CreateThin(id)]))
        })?;
        self.volume(name)
    }

    /// Deletes a volume and, if asked to, its snapshots.
    ///
    /// # Errors
    /// `Busy` while somebody has one of them open, or where there are snapshots nobody asked for.
    pub fn delete_volume(&self, name: &VolumeName, with_snapshots: bool) -> Result<()> {
        self.transact(|names| {
            let entry = names.volume(name)?;
            if !entry.snapshots.is_empty() && !with_snapshots {
                let problem = match entry.snapshots.len() {
                    1 => "has a snapshot".to_owned(),
                    count => format!("has {count} snapshots"),
                };
                return Err(Error::new(ErrorKind::Busy, format!("volume {name}"), problem)
                    .advise("delete them first, or say --with-snapshots"));
            }
            let mut changes = vec![Change::Delete(DeviceId::new(entry.id)?)];
            for snapshot in &entry.snapshots {
                changes.push(Change::Delete(DeviceId::new(snapshot.id)?));
            }
            Ok((RecordedChange::Delete { volume: name.clone() }, changes))
        })?;
        self.release_origins();
        Ok(())
    }

    /// Changes the size of a volume, also while it is in use. What lies behind a smaller size is
    /// lost.
    pub fn resize_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        check_size(name, size)?;
        let node = NodeName { volume: name.clone(), snapshot: None };
        let volume = self.open_thin(&node, false)?;
        // A smaller size is recorded before anything is given up, a larger one after it can be
        // used.
        let shrinks = size < volume.size();
        if !shrinks {
            self.pool.resize_volume(&volume, size)?;
        }
        self.transact(|names| {
            names.volume(name)?;
            Ok((RecordedChange::Resize { volume: name.clone(), size: size.get() }, Vec::new()))
        })?;
        if shrinks {
            self.pool.resize_volume(&volume, size)?;
        }
        self.volume(name)
    }

    /// Takes a snapshot of a volume as it is now, also while it is being written: it holds every
    /// write that was answered before the call, and none that began after it returned.
    pub fn create_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
    ) -> Result<SnapshotInfo> {
        self.transact(|names| {
            let entry = names.volume(volume)?;
            if names.snapshot(volume, snapshot).is_ok() {
                let object = format!("snapshot {volume}@{snapshot}");
                return Err(Error::new(
                    ErrorKind::Exists,
                    object,
                    "there is such a snapshot already",
                )
                .advise("choose another name"));
            }
            let id = self.free_id()?;
            let change = RecordedChange::Snapshot {
                volume: volume.clone(),
                name: snapshot.clone(),
                id: id.get(),
                size: entry.size,
            };
            let origin = DeviceId::new(entry.id)?;
            Ok((change, vec![Change::CreateSnapshot { id, origin }]))
        })?;
        let info = self.volume(volume)?;
        info.snapshots.into_iter().find(|info| info.name == snapshot.as_str()).ok_or_else(|| {
            let object = format!("snapshot {volume}@{snapshot}");
            Error::new(ErrorKind::NotFound, object, "was deleted at once")
        })
    }

    /// Deletes a snapshot. Others, and clones of it, keep what they share with it.
    pub fn delete_snapshot(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.transact(|names| {
            let id = DeviceId::new(names.snapshot(volume, snapshot)?.id)?;
            let change = RecordedChange::DeleteSnapshot {
                volume: volume.clone(),
                snapshot: snapshot.clone(),
            };
            Ok((change, vec![Change::Delete(id)]))
        })?;
        self.release_origins();
        Ok(())
    }

    /// Makes a volume what a snapshot of it is, its size too; also while it is in use. Snapshots
    /// stay, later ones as well.
    ///
    /// # Errors
    /// `Busy` where the snapshot shows an external origin that the volume does not show any more,
    /// or more of it, while the volume is in use.
    pub fn rollback(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        let node = NodeName { volume: volume.clone(), snapshot: None };
        let alike = {
            let names = self.names.lock();
            let source = &names.table.snapshot(volume, snapshot)?.origin;
            names.table.volume(volume)?.origin == *source
        };
        // What is open keeps the origin that it was opened with.
        let open = alike.then(|| self.open_thin(&node, false)).transpose()?;
        let mut size = ByteCount::ZERO;
        self.transact(|names| {
            let entry = names.volume(volume)?;
            let id = DeviceId::new(entry.id)?;
            let source = names.snapshot(volume, snapshot)?;
            if entry.origin != source.origin && self.pool.is_open(id) {
                let problem = "is in use, and the snapshot stands on an external origin otherwise";
                return Err(Error::new(ErrorKind::Busy, format!("volume {volume}"), problem)
                    .advise("disconnect its clients, and try again"));
            }
            size = ByteCount::new(source.size);
            let source = DeviceId::new(source.id)?;
            let change =
                RecordedChange::Rollback { volume: volume.clone(), snapshot: snapshot.clone() };
            self.rollbacks.fetch_add(1, Ordering::SeqCst);
            Ok((change, vec![Change::Rollback { id, source }]))
        })?;
        let open = open.map_or_else(|| self.open_thin(&node, false), Ok)?;
        if size >= open.size() {
            self.pool.restore_size(&open, size);
            return Ok(());
        }
        self.pool.resize_volume(&open, size)
    }

    /// Makes a new volume that begins as a snapshot is.
    pub fn clone_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
        new: &VolumeName,
    ) -> Result<VolumeInfo> {
        self.transact(|names| {
            names.check_free(new)?;
            let source = names.snapshot(volume, snapshot)?;
            let id = self.free_id()?;
            let change = RecordedChange::Clone {
                volume: volume.clone(),
                snapshot: snapshot.clone(),
                name: new.clone(),
                id: id.get(),
                size: source.size,
            };
            let origin = DeviceId::new(source.id)?;
            Ok((change, vec![Change::CreateSnapshot { id, origin }]))
        })?;
        self.volume(new)
    }

    /// Gives another name to a volume.
    ///
    /// # Errors
    /// `NotFound`; `Exists` where the new name is taken.
    pub fn rename_volume(&self, name: &VolumeName, new: &VolumeName) -> Result<VolumeInfo> {
        self.transact(|names| {
            names.volume(name)?;
            names.check_free(new)?;
            let change = RecordedChange::Rename { volume: name.clone(), name: new.clone() };
            Ok((change, Vec::new()))
        })?;
        self.volume(new)
    }

    /// Gives a name to a device that has none, made by a message or by others, and the size that
    /// only its maker knows: what lies behind a smaller one is not shown.
    ///
    /// # Errors
    /// `NotFound` where there is no such device; `Exists` where it, or another, has a name.
    pub fn name_device(
        &self,
        id: DeviceId,
        name: &VolumeName,
        size: ByteCount,
    ) -> Result<VolumeInfo> {
        check_size(name, size)?;
        self.transact(|names| {
            names.check_free(name)?;
            let object = format!("device #{id}");
            if let Some(named) = names.name_of(id.get()) {
                let problem = format!("has a name already, {named}");
                return Err(Error::new(ErrorKind::Exists, object, problem));
            }
            let devices = self.pool.devices();
            let device = devices.iter().find(|(known, _)| *known == id);
            let (_, device) = device.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, object, "there is no such device")
                    .advise("'firn volume list' shows what there is")
            })?;
            let (name, born) = (name.clone(), device.transaction);
            let change = RecordedChange::Name { name, id: id.get(), size: size.get(), born };
            Ok((change, Vec::new()))
        })?;
        self.volume(name)
    }

    /// Plans a change of names and devices and carries it out.
    pub(crate) fn transact(
        &self,
        plan: impl FnOnce(&Names) -> Result<(RecordedChange, Vec<Change>)>,
    ) -> Result<()> {
        let mut state = self.names.lock();
        let (change, changes) = plan(&state.table)?;
        self.record(&mut state, change, changes)
    }

    /// Carries out a change of names and devices: first the record, durable, then the commit whose
    /// transaction id makes it true.
    pub(crate) fn record(
        &self,
        state: &mut State,
        change: RecordedChange,
        mut changes: Vec<Change>,
    ) -> Result<()> {
        let State { table, log } = state;
        let log = self.writable_log(log)?;
        let current = self.pool.transaction();
        let transaction = current.checked_add(1).ok_or_else(|| {
            let problem = "has used up its transaction ids";
            Error::new(ErrorKind::Unsupported, self.path.display().to_string(), problem)
        })?;
        changes.push(Change::SetTransaction { current, new: transaction });
        let record = Record { transaction, at: Timestamp::now().to_string(), change };
        // On a copy, so that a change that names cannot follow is not made.
        let mut next = table.clone();
        next.apply(&record)?;
        let before = log.position();
        log.append(&record)?;
        if let Err(error) = self.pool.change(&changes) {
            log.retract(before)?;
            return Err(error);
        }
        *table = next;
        Ok(())
    }

    /// The log of names, if the pool takes changes.
    pub(crate) fn writable_log<'l>(
        &self,
        log: &'l mut Option<NamesLog>,
    ) -> Result<&'l mut NamesLog> {
        log.as_mut().filter(|_| !self.read_only).ok_or_else(|| {
            let reason = self.pool.status().read_only;
            let reason = reason.unwrap_or_else(|| "it is open read-only".into());
            Error::new(ErrorKind::ReadOnly, self.path.display().to_string(), reason)
        })
    }

    /// The lowest device number that nobody has.
    pub(crate) fn free_id(&self) -> Result<DeviceId> {
        let mut free = 0;
        for (id, _) in self.pool.devices() {
            if id.get() != free {
                break;
            }
            free += 1;
        }
        DeviceId::new(free)
    }
}

pub(crate) fn check_size(name: &VolumeName, size: ByteCount) -> Result<()> {
    /// Larger devices cannot be addressed with signed file offsets, by clients neither.
    const LARGEST: u64 = 1 << 62;
    let problem = match size.get() {
        0 => "is given size 0",
        bytes if bytes > LARGEST => "is given a size past 4 EiB",
        bytes if bytes % 512 != 0 => "is given a size that is not a multiple of 512 bytes",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Invalid, format!("volume {name}"), problem))
}
