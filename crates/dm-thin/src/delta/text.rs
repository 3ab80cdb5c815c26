//! Comparisons as the XML of `thin_delta`.
//!
//! The simple form joins ranges of one kind that are neighbours on the devices, wherever their data
//! lies; the verbose one has every range with its data blocks, grouped by kind.

use std::io::Write;

use block_types::Result;

use super::{Detail, Kind, Options, Range, Side};
use crate::dump::Fields;
use crate::xml::Text;

/// Writes a comparison.
pub(super) struct Printer<W> {
    text: Text<W>,
    detail: Detail,
    /// The range that may still grow, in the simple form; the last one, in the verbose.
    last: Option<Range>,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(out: W, detail: Detail) -> Self {
        Self { text: Text::new(out), detail, last: None }
    }

    pub(super) fn begin(&mut self, fields: &Fields, options: &Options) -> Result<()> {
        let text = &mut self.text;
        text.word("<superblock uuid=\"\" time=\"").number(fields.time.into());
        text.word("\" transaction=\"").number(fields.transaction);
        text.word("\" data_block_size=\"").number(fields.block_sectors.into());
        text.word("\" nr_data_blocks=\"").number(fields.data_blocks);
        if let Some(held) = fields.held_root {
            text.word("\" metadata_snap=\"").number(held.get());
        }
        text.word("\">").line()?;
        self.side("  <diff left", options.left);
        self.side("\" right", options.right);
        self.text.word("\">").line()
    }

    pub(super) fn range(&mut self, range: &Range) -> Result<()> {
        match self.detail {
            Detail::Simple => self.join(range),
            Detail::Verbose => self.list(range),
        }
    }

    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(last) = self.last.take() {
            match self.detail {
                Detail::Simple => self.line(&last)?,
                Detail::Verbose => {
                    self.text.word("    </").word(tag(last.kind)).word(">").line()?;
                }
            }
        }
        self.text.word("  </diff>").line()?;
        self.text.word("</superblock>").line()?;
        self.text.finish()
    }

    fn side(&mut self, word: &str, side: Side) {
        self.text.word(word);
        match side {
            Side::Device(id) => self.text.word("=\"").number(id.get().into()),
            Side::Root(root) => self.text.word("_root=\"").number(root.get()),
        };
    }

    fn join(&mut self, range: &Range) -> Result<()> {
        if let Some(last) = &mut self.last {
            if last.kind == range.kind && last.from.get() + last.len == range.from.get() {
                last.len += range.len;
                return Ok(());
            }
            let last = *last;
            self.line(&last)?;
        }
        self.last = Some(*range);
        Ok(())
    }

    fn line(&mut self, range: &Range) -> Result<()> {
        let text = &mut self.text;
        text.word("    <").word(tag(range.kind)).word(" begin=\"").number(range.from.get());
        text.word("\" length=\"").number(range.len).word("\"/>").line()
    }

    fn list(&mut self, range: &Range) -> Result<()> {
        let text = &mut self.text;
        let before = self.last.replace(*range).map(|last| last.kind);
        if before != Some(range.kind) {
            if let Some(kind) = before {
                text.word("    </").word(tag(kind)).word(">").line()?;
            }
            text.word("    <").word(tag(range.kind)).word(">").line()?;
        }
        text.word("      <range begin=\"").number(range.from.get());
        match (range.left, range.right) {
            (Some(left), Some(right)) if left != right => {
                text.word("\" left_data_begin=\"").number(left.get());
                text.word("\" right_data_begin=\"").number(right.get());
            }
            (Some(block), _) | (None, Some(block)) => {
                text.word("\" data_begin=\"").number(block.get());
            }
            (None, None) => {}
        }
        text.word("\" length=\"").number(range.len).word("\"/>").line()
    }
}

fn tag(kind: Kind) -> &'static str {
    match kind {
        Kind::Same => "same",
        Kind::LeftOnly => "left_only",
        Kind::RightOnly => "right_only",
        Kind::Different => "different",
    }
}
