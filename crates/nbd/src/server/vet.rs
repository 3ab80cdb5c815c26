//! Which requests are refused before anything is done for them.

use block_types::{ByteCount, ByteRange};

use super::export::Export;
use super::slow::writes;
use super::status::past_the_end;
use crate::wire::{Command, CommandFlags, Dialect, Errno, MAX_PAYLOAD, Request};

/// What requests of one connection are held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) dialect: Dialect,
    /// The size the client was told.
    pub(super) size: ByteCount,
    pub(super) minimum: ByteCount,
    pub(super) read_only: bool,
    /// Whether the client chose metadata contexts.
    pub(super) contexts: bool,
}

impl Bounds {
    pub(super) fn of(export: &Export, dialect: Dialect, contexts: bool) -> Self {
        Self {
            dialect,
            size: export.size(),
            minimum: export.device().limits().minimum,
            read_only: export.is_read_only(),
            contexts,
        }
    }

    /// Checks `request`; words for people go with the error number.
    pub(super) fn check(&self, request: &Request) -> Result<(), (Errno, &'static str)> {
        let command = request.command;
        let allowed = self
            .flags_of(command)
            .ok_or((Errno::Invalid, "the command is not known or was not negotiated"))?;
        if !request.flags.within(allowed) {
            return Err((Errno::Invalid, "the command does not have such a flag"));
        }
        if self.read_only && writes(command) {
            return Err((Errno::Perm, "the export is read-only"));
        }
        if command == Command::FLUSH || command == Command::DISC {
            return Ok(());
        }
        let moves_data = command == Command::READ || command == Command::WRITE;
        if moves_data && request.length.get() > MAX_PAYLOAD.into() {
            return Err((Errno::Invalid, "the request is longer than 32 MiB"));
        }
        if command == Command::BLOCK_STATUS && request.length.is_zero() {
            return Err((Errno::Invalid, "the request is empty"));
        }
        let range = ByteRange::checked(request.offset, request.length)
            .filter(|range| range.end().get() <= self.size.get())
            .ok_or((past_the_end(command), "the request reaches past the end"))?;
        if !range.is_aligned(self.minimum) {
            return Err((Errno::Invalid, "the request is not aligned to the minimum block size"));
        }
        Ok(())
    }

    /// The flags `command` may have, or `None` if there is no such command here.
    fn flags_of(&self, command: Command) -> Option<CommandFlags> {
        // FUA may stand on any command and means nothing on those that do not write.
        let flags = match command {
            Command::READ if self.dialect >= Dialect::Structured => CommandFlags::DF,
            Command::WRITE if self.dialect == Dialect::Extended => CommandFlags::PAYLOAD_LEN,
            Command::READ
            | Command::WRITE
            | Command::DISC
            | Command::FLUSH
            | Command::TRIM
            | Command::CACHE => CommandFlags::NONE,
            Command::WRITE_ZEROES => CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO),
            Command::BLOCK_STATUS if self.contexts => CommandFlags::REQ_ONE,
            _ => return None,
        };
        Some(flags.with(CommandFlags::FUA))
    }
}

#[cfg(test)]
mod tests {
    use super::Bounds;
    use crate::wire::{Command, CommandFlags, Dialect, Errno, Request};
    use block_types::{ByteCount, ByteOffset};

    fn check(
        bounds: &Bounds,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> Option<Errno> {
        let request = Request {
            flags: CommandFlags(flags),
            command,
            cookie: 0,
            offset: ByteOffset::new(offset),
            length: ByteCount::new(length),
        };
        bounds.check(&request).err().map(|(errno, _)| errno)
    }

    fn bounds() -> Bounds {
        Bounds {
            dialect: Dialect::Structured,
            size: ByteCount::new(64 << 20),
            minimum: ByteCount::new(512),
            read_only: false,
            contexts: true,
        }
    }

    #[test]
    fn ranges() {
        let bounds = bounds();
        let end = 64 << 20;
        for (command, errno) in [
            (Command::READ, Errno::Invalid),
            (Command::WRITE, Errno::NoSpace),
            (Command::WRITE_ZEROES, Errno::NoSpace),
            (Command::TRIM, Errno::Invalid),
            (Command::CACHE, Errno::Invalid),
            (Command::BLOCK_STATUS, Errno::Invalid),
        ] {
            assert_eq!(check(&bounds, command, 0, end - 512, 512), None, "{command:?}");
            assert_eq!(check(&bounds, command, 0, end, 512), Some(errno), "{command:?}");
            assert_eq!(check(&bounds, command, 0, u64::MAX - 511, 512), Some(errno));
            assert_eq!(check(&bounds, command, 0, 1, 512), Some(Errno::Invalid));
            assert_eq!(check(&bounds, command, 0, 512, 100), Some(Errno::Invalid));
        }
        assert_eq!(check(&bounds, Command::FLUSH, 0, u64::MAX, 7), None);
        assert_eq!(check(&bounds, Command::READ, 0, 0, (32 << 20) + 512), Some(Errno::Invalid));
        assert_eq!(check(&bounds, Command::WRITE_ZEROES, 0, 0, 64 << 20), None);
        assert_eq!(check(&bounds, Command::BLOCK_STATUS, 0, 0, 0), Some(Errno::Invalid));
    }

    #[test]
    fn flags_and_unknown_commands() {
        let mut bounds = bounds();
        assert_eq!(check(&bounds, Command::READ, 1 | 4, 0, 512), None);
        assert_eq!(check(&bounds, Command::READ, 2, 0, 512), Some(Errno::Invalid));
        assert_eq!(check(&bounds, Command::WRITE_ZEROES, 1 | 2 | 16, 0, 512), None);
        assert_eq!(check(&bounds, Command::WRITE, 32, 0, 512), Some(Errno::Invalid));
        for unknown in [8, 9, 0xffff] {
            assert_eq!(check(&bounds, Command(unknown), 0, 0, 512), Some(Errno::Invalid));
        }
        bounds.dialect = Dialect::Extended;
        assert_eq!(check(&bounds, Command::WRITE, 32, 0, 512), None);
        assert_eq!(check(&bounds, Command::BLOCK_STATUS, 32, 0, 512), Some(Errno::Invalid));
        bounds.dialect = Dialect::Simple;
        bounds.contexts = false;
        assert_eq!(check(&bounds, Command::READ, 4, 0, 512), Some(Errno::Invalid));
        assert_eq!(check(&bounds, Command::BLOCK_STATUS, 0, 0, 512), Some(Errno::Invalid));
    }

    #[test]
    fn read_only_exports_refuse_every_write() {
        let bounds = Bounds { read_only: true, ..bounds() };
        for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
            assert_eq!(check(&bounds, command, 0, 0, 512), Some(Errno::Perm));
        }
        assert_eq!(check(&bounds, Command::FLUSH, 0, 0, 0), None);
        assert_eq!(check(&bounds, Command::READ, 0, 0, 512), None);
    }
}
