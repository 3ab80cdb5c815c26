//! The text itself.

use std::io::Write;

use block_types::Result;
use persistent_data::MetaBlock;

use super::source::{Fields, SourceDevice};
use super::{Dialect, Form};
use crate::layout::NEEDS_CHECK;
use crate::xml::Text;

/// One step of a packed mapping to the next data block, at the same time.
const NEXT_BLOCK: u64 = 1 << 24;

/// Mappings that lie side by side.
#[derive(Clone, Copy)]
struct Pending {
    from: u64,
    /// The packed mapping of the first.
    to: u64,
    len: u64,
}

/// Writes metadata as text, one part after another.
pub(super) struct Printer<W> {
    text: Text<W>,
    form: Form,
    dialect: Dialect,
    pending: Option<Pending>,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(out: W, form: Form, dialect: Dialect) -> Self {
        Self { text: Text::new(out), form, dialect, pending: None }
    }

    pub(super) fn begin(&mut self, fields: &Fields) -> Result<()> {
        let text = &mut self.text;
        let flags = match self.dialect {
            Dialect::Tools09 => Some(fields.flags),
            Dialect::Tools1 => (fields.flags & NEEDS_CHECK != 0).then_some(NEEDS_CHECK),
        };
        match self.form {
            Form::Xml => {
                text.word("<superblock uuid=\"\" time=\"").number(fields.time.into());
                text.word("\" transaction=\"").number(fields.transaction);
                if let Some(flags) = flags {
                    text.word("\" flags=\"").number(flags.into());
                }
                text.word("\" version=\"").number(fields.version.into());
                text.word("\" data_block_size=\"").number(fields.block_sectors.into());
                text.word("\" nr_data_blocks=\"").number(fields.data_blocks).word("\">");
            }
            Form::HumanReadable => {
                text.word("begin superblock: \"\", ").number(fields.time.into());
                text.word(", ").number(fields.transaction);
                text.word(", ").number(flags.unwrap_or(0).into());
                text.word(", ").number(fields.version.into());
                text.word(", ").number(fields.block_sectors.into());
                text.word(", ").number(fields.data_blocks);
            }
        }
        text.line()
    }

    pub(super) fn end(&mut self) -> Result<()> {
        match (self.form, self.dialect) {
            (Form::Xml, Dialect::Tools1) => {
                self.text.word("</superblock>");
            }
            (Form::Xml, Dialect::Tools09) => self.text.word("</superblock>").line()?,
            (Form::HumanReadable, _) => self.text.word("end superblock").line()?,
        }
        self.text.finish()
    }

    pub(super) fn begin_definition(&mut self, name: MetaBlock) -> Result<()> {
        match self.form {
            Form::Xml => self.text.word("  <def name=\"").number(name.get()).word("\">").line(),
            Form::HumanReadable => self.text.word("def: ").number(name.get()).line(),
        }
    }

    pub(super) fn end_definition(&mut self) -> Result<()> {
        self.settle()?;
        match self.form {
            Form::Xml => self.text.word("  </def>").line(),
            Form::HumanReadable => self.text.line(),
        }
    }

    pub(super) fn begin_device(&mut self, device: &SourceDevice) -> Result<()> {
        let (text, state) = (&mut self.text, &device.state);
        let (id, created) = (u64::from(device.id.get()), u64::from(state.created.get()));
        let snapshotted = u64::from(state.snapshotted.get());
        match self.form {
            Form::Xml => {
                text.word("  <device dev_id=\"").number(id);
                text.word("\" mapped_blocks=\"").number(state.mapped);
                text.word("\" transaction=\"").number(state.transaction);
                text.word("\" creation_time=\"").number(created);
                text.word("\" snap_time=\"").number(snapshotted).word("\">").line()
            }
            Form::HumanReadable => {
                text.word("device: ").number(id).line()?;
                text.word("mapped_blocks: ").number(state.mapped).line()?;
                text.word("transaction: ").number(state.transaction).line()?;
                text.word("creation time: ").number(created).line()?;
                text.word("snap time: ").number(snapshotted).line()
            }
        }
    }

    pub(super) fn end_device(&mut self) -> Result<()> {
        self.settle()?;
        match self.form {
            Form::Xml => self.text.word("  </device>").line(),
            Form::HumanReadable => self.text.line(),
        }
    }

    pub(super) fn reference(&mut self, name: MetaBlock) -> Result<()> {
        self.settle()?;
        let text = &mut self.text;
        match self.form {
            Form::Xml => text.word("    <ref name=\"").number(name.get()).word("\"/>").line(),
            Form::HumanReadable => text.word("    ref: ").number(name.get()).line(),
        }
    }

    /// Adds a guest block with its packed mapping.
    #[inline]
    pub(super) fn map(&mut self, key: u64, value: u64) -> Result<()> {
        if let Some(pending) = &mut self.pending {
            let step = pending.len.wrapping_mul(NEXT_BLOCK);
            if key == pending.from.wrapping_add(pending.len)
                && value == pending.to.wrapping_add(step)
            {
                pending.len += 1;
                return Ok(());
            }
            self.settle()?;
        }
        self.pending = Some(Pending { from: key, to: value, len: 1 });
        Ok(())
    }

    /// Writes the mappings that wait.
    fn settle(&mut self) -> Result<()> {
        let Some(Pending { from, to, len }) = self.pending.take() else { return Ok(()) };
        let (block, time) = (to / NEXT_BLOCK, to % NEXT_BLOCK);
        let text = &mut self.text;
        match (self.form, len, self.dialect) {
            (Form::Xml, 1, _) => {
                text.word("    <single_mapping origin_block=\"").number(from);
                text.word("\" data_block=\"").number(block);
                text.word("\" time=\"").number(time).word("\"/>");
            }
            (Form::Xml, ..) => {
                text.word("    <range_mapping origin_begin=\"").number(from);
                text.word("\" data_begin=\"").number(block);
                text.word("\" length=\"").number(len);
                text.word("\" time=\"").number(time).word("\"/>");
            }
            (Form::HumanReadable, 1, Dialect::Tools09) => {
                text.word("    ").number(from).word(" -> ").number(block);
                text.word(", ").number(time);
            }
            (Form::HumanReadable, ..) => {
                text.word("    (").number(from).word("..").number(from + (len - 1));
                text.word(") -> (").number(block).word("..").number(block + (len - 1));
                text.word("), ").number(time);
            }
        }
        text.line()
    }
}
