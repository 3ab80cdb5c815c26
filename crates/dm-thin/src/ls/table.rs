//! The table of devices as text.

use std::io::Write;

use block_types::Result;

use super::{Column, Listing};
use crate::xml::Text;

/// Writes `columns` of `listing`: right-aligned, each followed by a space.
pub(super) fn write(
    listing: &Listing,
    columns: &[Column],
    headers: bool,
    out: impl Write,
) -> Result<()> {
    let mut lines: Vec<Vec<String>> = Vec::with_capacity(listing.rows.len() + 1);
    if headers {
        lines.push(columns.iter().map(|column| column.name().to_owned()).collect());
    }
    for row in &listing.rows {
        lines.push(columns.iter().map(|column| column.text(row, listing.block_size)).collect());
    }
    let mut widths = vec![0; columns.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = Text::new(out);
    for line in &lines {
        for (&width, cell) in widths.iter().zip(line) {
            text.word(&format!("{cell:>width$} "));
        }
        text.line()?;
    }
    text.finish()
}
