//! The kernel's messages to a pool whose devices have names, and its status lines.
//!
//! Devices that a message makes have no name; what has one keeps it until the device goes. Names
//! are true up to a transaction id, so the id and the log of names move together here, too.

use block_types::{ByteCount, Error, ErrorKind, Result};
use dm_thin::{Change, DeviceId, Message};

use crate::directory::State;
use crate::{NodeName, PoolDirectory, RecordedChange, VolumeName};

impl PoolDirectory {
    /// Does what a message says, durably. Deleting a device that has a name deletes the name with
    /// it, and moves the transaction id on as every change of names does. So does a snapshot of
    /// what stands on an external origin: the names know that the new device does, too.
    ///
    /// # Errors
    /// As [`Pool::message`](dm_thin::Pool::message), with the kernel's names. `Busy` for deleting a
    /// volume with snapshots that have names; `Invalid` for a transaction id that would go back
    /// while there are names.
    pub fn message(&self, message: Message) -> Result<()> {
        let done = match message {
            Message::Delete(id) => self.delete_device(id),
            Message::CreateSnap { id, origin } => self.snapshot_device(id, origin),
            Message::SetTransaction { current, new } => self.set_transaction(current, new),
            _ => {
                let _no_name_changes = self.names.lock();
                self.pool.change(&[message.change()])
            }
        };
        done.map_err(|error| message.refused(error))
    }

    /// The name of a device, if it has one.
    pub fn name_of(&self, id: DeviceId) -> Option<NodeName> {
        self.names.lock().table.name_of(id.get())
    }

    /// The line that `dmsetup status` would print for the pool.
    pub fn status_line(&self) -> Result<String> {
        self.pool.status_line()
    }

    /// The line that `dmsetup status` would print for a volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume_status_line(&self, name: &VolumeName) -> Result<String> {
        let names = self.names.lock();
        let entry = names.table.volume(name)?;
        let (id, size) = (DeviceId::new(entry.id)?, ByteCount::new(entry.size));
        self.pool.thin_status(id, size).map(|status| status.line())
    }

    fn delete_device(&self, id: DeviceId) -> Result<()> {
        let mut state = self.names.lock();
        let delete = vec![Change::Delete(id)];
        let Some(NodeName { volume, snapshot }) = state.table.name_of(id.get()) else {
            if state.table.is_unnamed_over_origin(id.get()) {
                let change = RecordedChange::Disinherit { id: id.get() };
                return self.record(&mut state, change, delete);
            }
            return self.pool.change(&delete);
        };
        let change = match snapshot {
            Some(snapshot) => RecordedChange::DeleteSnapshot { volume, snapshot },
            None if state.table.volume(&volume)?.snapshots.is_empty() => {
                RecordedChange::Delete { volume }
            }
            None => {
                let problem = "has snapshots, which would lose their name";
                return Err(Error::new(ErrorKind::Busy, format!("volume {volume}"), problem)
                    .advise(format!(
                        "delete them first, or use 'firn volume delete --with-snapshots' for \
                         {volume}"
                    )));
            }
        };
        self.record(&mut state, change, delete)
    }

    /// Makes a snapshot that has no name. Where its origin stands on an external one the names have
    /// to know that it does, too; then the transaction id moves on.
    fn snapshot_device(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        let mut state = self.names.lock();
        let create = vec![Change::CreateSnapshot { id, origin }];
        if state.table.origin_of(origin.get()).is_none() {
            return self.pool.change(&create);
        }
        let change = RecordedChange::Inherit { id: id.get(), of: origin.get() };
        self.record(&mut state, change, create)
    }

    fn set_transaction(&self, current: u64, new: u64) -> Result<()> {
        let mut state = self.names.lock();
        let State { table, log } = &mut *state;
        let log = self.writable_log(log)?;
        // Else the pool refuses it.
        if current == self.pool.transaction() {
            if table.is_empty() {
                // Else records of names that are gone could come true with an id a second time.
                log.clear()?;
            } else if new < current {
                let problem = format!(
                    "the transaction id is {current} and cannot go back to {new} while volumes \
                     have names: those given since then would be lost"
                );
                return Err(Error::new(
                    ErrorKind::Invalid,
                    self.path.display().to_string(),
                    problem,
                ));
            } else {
                // A record whose commit a crash prevented must not come true with the new id.
                log.retract(log.position())?;
            }
        }
        self.pool.change(&[Change::SetTransaction { current, new }])
    }
}
