//! Checking an image: every structure by itself, and all of them against each other.
//!
//! The blocks are sorted by where they lie, so an image of 2 TiB takes a sort and a pass, not a
//! comparison of every pair.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::address::{BlockSize, GuestBlock};
use super::alloc::{Occupant, Occupied, has_room};
use super::batmap;
use super::footer::{Footer, Found, Kind};
use super::geometry::Geometry;
use super::header::Header;
use super::host::{check_sectors, read_bytes};
use super::identity::{DiskId, Timestamp};
use super::image::Heads;
use super::layout::FEATURE_RESERVED;
use super::mapping::{Bitmap, Mapping};
use super::open::{Parts, find_batmap, read_table, structures};

/// Findings of one sort that are listed; the rest is only counted.
const LISTED: usize = 100;
/// A clock may be so many seconds ahead of ours.
const AHEAD: u32 = 1800;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is broken, or would be refused or misread by a peer.
    pub errors: Vec<String>,
    /// Space between blocks that nothing refers to: a loss, but no danger. The next writer uses it.
    pub leaks: Vec<String>,
    /// What is unusual and harms nobody.
    pub notes: Vec<String>,
    /// Blocks that have a place.
    pub blocks: u64,
    /// Findings beyond those that are listed.
    pub unlisted: u64,
}

/// The answer of a check in one word, with the exit status that `qemu-img check` has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong: 0.
    Sound,
    /// Something is broken: 2.
    Corrupt,
    /// Space is lost, and nothing else: 3.
    Leaks,
}

impl CheckReport {
    /// The answer in one word.
    pub fn verdict(&self) -> Verdict {
        match (self.errors.is_empty(), self.leaks.is_empty()) {
            (false, _) => Verdict::Corrupt,
            (true, false) => Verdict::Leaks,
            (true, true) => Verdict::Sound,
        }
    }

    fn error(&mut self, text: String) {
        Self::list(&mut self.errors, &mut self.unlisted, text);
    }

    fn leak(&mut self, text: String) {
        Self::list(&mut self.leaks, &mut self.unlisted, text);
    }

    fn list(all: &mut Vec<String>, unlisted: &mut u64, text: String) {
        if all.len() < LISTED {
            all.push(text);
        } else {
            *unlisted += 1;
        }
    }
}

impl Verdict {
    /// The exit status.
    pub const fn code(self) -> u8 {
        match self {
            Self::Sound => 0,
            Self::Corrupt => 2,
            Self::Leaks => 3,
        }
    }
}

/// Checks the image in `file`, which nobody writes. `now` is the time that it may not be ahead of.
///
/// # Errors
/// What keeps the check from being made: the file fails, or it holds nothing that can be taken for
/// a VHD: no footer, or of a sparse disk no header.
pub fn check(file: &dyn BlockDevice, now: Option<Timestamp>) -> Result<CheckReport> {
    check_sectors(file)?;
    let parts = Parts::read(file)?;
    let mut report = CheckReport::default();
    check_footers(&mut report, &parts);
    check_footer(&mut report, &parts.footer, now);
    if let Some(header) = &parts.header {
        check_sparse(&mut report, file, &parts, header)?;
    }
    Ok(report)
}

fn check_footers(report: &mut CheckReport, parts: &Parts) {
    if let Found::Bad(error) = &parts.footers.end {
        report.error(format!("the footer at the end is lost: {}", error.problem()));
    }
    if parts.footer.kind() == Kind::Fixed {
        return;
    }
    match &parts.footers.copy {
        Found::Bad(error) => report.error(format!("the copy of the footer: {}", error.problem())),
        Found::Sound(copy) => {
            let old = parts.footer.creator().hides_in_copy();
            let end = parts.footers.end.sound().filter(|end| end.bytes() != copy.bytes());
            if end.is_some() && !old {
                report.error("the footer at the end and its copy differ".to_owned());
            }
        }
    }
}

/// The rules that XenServer holds a footer to.
fn check_footer(report: &mut CheckReport, footer: &Footer, now: Option<Timestamp>) {
    let layout = footer.layout();
    if DiskId::present(layout.uuid).is_none() {
        report.error("the disk has the null UUID".to_owned());
    }
    if layout.features.get() & FEATURE_RESERVED == 0 {
        report.notes.push("the reserved bit of the features is not set".to_owned());
    }
    if layout.reserved.iter().any(|&byte| byte != 0) {
        report.notes.push("the reserved bytes of the footer are not zero".to_owned());
    }
    if let Some(now) = now.filter(|now| footer.created().get() > now.get().saturating_add(AHEAD)) {
        let ahead = footer.created().get() - now.get();
        report.notes.push(format!("it was made {ahead} seconds from now; XenServer refuses that"));
    }
    let (given, right) = (footer.geometry(), Geometry::of(footer.size()));
    if given.size() > right.size() {
        report.notes.push(format!("its geometry {given:?} is larger than the disk, {right:?}"));
    }
}

fn check_sparse(
    report: &mut CheckReport,
    file: &dyn BlockDevice,
    parts: &Parts,
    header: &Header,
) -> Result<()> {
    let footer = &parts.footer;
    check_header(report, footer, header);
    check_table_behind(report, file, footer, header)?;
    let mapping = read_table(file, header, footer.size())?;
    let heads = Heads {
        footer: *footer,
        footer_at: parts.footers.end_at,
        header: Some(*header),
        batmap: None,
        distrust: None,
    };
    let batmap = match find_batmap(file, header, &heads, &mapping)? {
        Ok(batmap) => batmap,
        Err(why) => {
            report.error(format!("the batmap cannot be trusted: {why}"));
            None
        }
    };
    let mut occupied = structures(footer, header, batmap.as_ref());
    occupied.extend(mapping.places().map(|(block, place)| Occupied {
        range: mapping.block_size().place(place),
        by: Occupant::Block(block.get()),
    }));
    let end = match &parts.footers.end {
        Found::Sound(_) => parts.footers.end_at,
        Found::Bad(_) => ByteOffset::new(file.size().get()),
    };
    report.blocks = mapping.places().count() as u64;
    check_places(report, &mut occupied, end, mapping.block_size());
    if let Some(batmap) = &batmap {
        check_full(report, file, &mapping, batmap)?;
    }
    Ok(())
}

fn check_header(report: &mut CheckReport, footer: &Footer, header: &Header) {
    if footer.kind() == Kind::Dynamic && header.names_a_parent() {
        let text = "the disk has no parent, but its header still says something of one";
        report.error(text.to_owned());
    }
    if footer.kind() == Kind::Differencing && header.parent_id() == Some(footer.id()) {
        report.error("the disk names itself as its parent".to_owned());
    }
    let layout = header.layout();
    if layout.reserved.get() != 0 || layout.reserved_end.iter().any(|&byte| byte != 0) {
        report.notes.push("the reserved bytes of the header are not zero".to_owned());
    }
}

/// Entries of the table that the disk does not need should not say anything; nobody follows them.
fn check_table_behind(
    report: &mut CheckReport,
    file: &dyn BlockDevice,
    footer: &Footer,
    header: &Header,
) -> Result<()> {
    let needed = ByteCount::new(4 * header.block_size().count(footer.size()));
    let start = header.table_at().plus(needed);
    let whole = ByteCount::new(4 * u64::from(header.entries()));
    let end = header.table_at().plus(whole).min(ByteOffset::new(file.size().get())).max(start);
    let mut used = 0;
    for piece in ByteRange::between(start, end).pieces(ByteCount::new(1 << 20)) {
        let mut bytes = vec![0; piece.len.as_usize()];
        read_bytes(file, &mut bytes, piece.start)?;
        used += bytes.chunks_exact(4).filter(|entry| *entry != [0xff; 4]).count();
    }
    if used > 0 {
        let text = format!("{used} entries of the table beyond the disk's end are not unused");
        report.notes.push(text);
    }
    Ok(())
}

/// Everything in the file, in order: what overlaps, what lies past the end, what is lost.
fn check_places(
    report: &mut CheckReport,
    occupied: &mut [Occupied],
    footer_at: ByteOffset,
    size: BlockSize,
) {
    occupied.sort_unstable_by_key(|one| one.range.start);
    let mut last: Option<Occupied> = None;
    let mut end = ByteOffset::ZERO;
    for &one in occupied.iter().filter(|one| !one.range.is_empty()) {
        let gap = ByteRange::between(end, one.range.start.max(end));
        if let Some(other) = last.filter(|_| one.range.start < end) {
            let at = one.range.start;
            report.error(format!("{} lies over {}, at {at}", one.by.text(), other.by.text()));
        } else if has_room(gap, size) {
            report.leak(format!("{gap} belong to nobody"));
        }
        if one.range.end() > footer_at {
            let past = one.range.end();
            report.error(format!("{} reaches past the end of the file, to {past}", one.by.text()));
        }
        if one.range.end() > end {
            end = one.range.end();
            last = Some(one);
        }
    }
}

/// Blocks that the batmap says are full must be so by their bitmaps.
fn check_full(
    report: &mut CheckReport,
    file: &dyn BlockDevice,
    mapping: &Mapping,
    batmap: &batmap::Batmap,
) -> Result<()> {
    let size = mapping.block_size();
    let mut bytes = vec![0; size.bitmap_bytes().as_usize()];
    let inside = |range: ByteRange| range.end().get() <= file.size().get();
    for index in batmap.full() {
        let Ok(number) = u32::try_from(index) else { continue };
        let place = mapping.place(GuestBlock::new(number));
        let Some(place) = place.filter(|&place| inside(size.place(place))) else { continue };
        read_bytes(file, &mut bytes, place.start())?;
        if !Bitmap::parse(size, &bytes).is_full(size) {
            report.error(format!("the batmap says that block {number} is full, its bitmap not"));
        }
    }
    Ok(())
}
