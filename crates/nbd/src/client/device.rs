//! The export as a device.

use std::ops::ControlFlow;

use block_io::{BlockDevice, Limits, ZeroMode, check_range, check_writable};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};

use super::Client;
use super::connection::{Call, Data};
use crate::wire::{Command, CommandFlags, Dialect, StatusExtent, TransmissionFlags};

/// Most bytes that one compact request without payload is about: below 4 GiB, and aligned.
const COMPACT_EFFECT: u64 = 2 << 30;
/// Bytes of zeros that are written at once to a server without WRITE_ZEROES.
const ZEROS: usize = 1 << 20;

const HOLE: u64 = 1;
const ZERO: u64 = 2;

impl BlockDevice for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        self.agreed.size
    }

    fn limits(&self) -> Limits {
        Self::limits_of(&self.agreed)
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        check_range(self, requested(self, buffer.len(), at)?)?;
        let mut at = at;
        for piece in buffer.chunks_mut(self.payload_step()) {
            let range = ByteRange::new(at, ByteCount::of(piece));
            self.call(Command::READ, CommandFlags::NONE, range, Data::Fill(piece))?;
            at = range.end();
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        check_writable(self)?;
        check_range(self, requested(self, bytes.len(), at)?)?;
        let mut at = at;
        for piece in bytes.chunks(self.payload_step()) {
            let range = ByteRange::new(at, ByteCount::of(piece));
            self.call(Command::WRITE, CommandFlags::NONE, range, Data::Send(piece))?;
            at = range.end();
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        check_writable(self)?;
        check_range(self, range)?;
        let can = |flag| self.agreed.flags.contains(flag);
        if mode.only_if_fast && !can(TransmissionFlags::FAST_ZERO) {
            let problem = "cannot say whether it zeroes fast";
            return Err(Error::new(ErrorKind::Unsupported, &self.name, problem));
        }
        if !can(TransmissionFlags::WRITE_ZEROES) {
            return self.write_zeros(range);
        }
        let mut flags = CommandFlags::NONE;
        if !mode.may_unmap {
            flags = flags.with(CommandFlags::NO_HOLE);
        }
        if mode.only_if_fast {
            flags = flags.with(CommandFlags::FAST_ZERO);
        }
        self.pieces(range, |piece| self.call(Command::WRITE_ZEROES, flags, piece, Data::None))
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        check_writable(self)?;
        check_range(self, range)?;
        if !self.agreed.flags.contains(TransmissionFlags::TRIM) {
            return Ok(());
        }
        let trim = |piece| self.call(Command::TRIM, CommandFlags::NONE, piece, Data::None);
        self.pieces(range, trim)
    }

    fn flush(&self) -> Result<()> {
        if !self.agreed.flags.contains(TransmissionFlags::FLUSH) {
            return Ok(());
        }
        self.call(Command::FLUSH, CommandFlags::NONE, ByteRange::default(), Data::None)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        let Some(id) = self.agreed.allocation else {
            // Nothing is known, so everything is data.
            if !range.is_empty() {
                let _ = each(Extent { range, state: ExtentState::Data });
            }
            return Ok(());
        };
        let mut at = range.start;
        while at < range.end() {
            let rest = ByteRange::between(at, range.end());
            let asked = ByteRange::new(at, rest.len.min(self.effect_step()));
            for status in self.status(id, asked)? {
                let found =
                    ByteRange::new(at, status.length.min(ByteRange::between(at, range.end()).len));
                if found.is_empty() {
                    break;
                }
                at = found.end();
                if each(Extent { range: found, state: state_of(status.flags) }).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Client {
    fn call(
        &self,
        command: Command,
        flags: CommandFlags,
        range: ByteRange,
        data: Data<'_>,
    ) -> Result<()> {
        self.connection.lock().execute(&self.name, Call { command, flags, range, data })
    }

    /// What the server says about the begin of `range`; at least one extent, none of them empty.
    fn status(&self, id: u32, range: ByteRange) -> Result<Vec<StatusExtent>> {
        let mut extents = Vec::new();
        let data = Data::Extents(id, &mut extents);
        self.call(Command::BLOCK_STATUS, CommandFlags::NONE, range, data)?;
        if extents.iter().any(|extent| extent.length.is_zero()) {
            let problem = "reports an empty extent";
            return Err(Error::new(ErrorKind::Corrupt, &self.name, problem));
        }
        Ok(extents)
    }

    /// Bytes of payload of one request.
    fn payload_step(&self) -> usize {
        let minimum = self.agreed.minimum;
        (self.agreed.maximum - self.agreed.maximum % minimum) as usize
    }

    /// Bytes that one request without payload is about.
    fn effect_step(&self) -> ByteCount {
        match self.agreed.dialect {
            Dialect::Simple | Dialect::Structured => ByteCount::new(COMPACT_EFFECT),
            Dialect::Extended => self.agreed.size,
        }
    }

    /// Calls `each` with `range` in pieces that one request can be about.
    fn pieces(&self, range: ByteRange, each: impl Fn(ByteRange) -> Result<()>) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let rest = ByteRange::between(at, range.end());
            let piece = ByteRange::new(at, rest.len.min(self.effect_step()));
            each(piece)?;
            at = piece.end();
        }
        Ok(())
    }

    fn write_zeros(&self, range: ByteRange) -> Result<()> {
        let zeros = vec![0; range.len.min(ByteCount::new(ZEROS as u64)).as_usize()];
        let mut at = range.start;
        while at < range.end() {
            let rest = ByteRange::between(at, range.end()).len.min(ByteCount::of(&zeros));
            self.write_at(&zeros[..rest.as_usize()], at)?;
            at = at.plus(rest);
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.get_mut().disconnect();
    }
}

/// The range of a buffer's request.
fn requested(device: &Client, len: usize, at: ByteOffset) -> Result<ByteRange> {
    ByteRange::checked(at, ByteCount::new(len as u64))
        .ok_or_else(|| Error::new(ErrorKind::OutOfRange, device.name(), "ends before the request"))
}

fn state_of(flags: u64) -> ExtentState {
    match (flags & HOLE != 0, flags & ZERO != 0) {
        (true, true) => ExtentState::Hole,
        (false, true) => ExtentState::Zero,
        // A hole that does not read as zeros has to be read like data.
        (_, false) => ExtentState::Data,
    }
}
