//! Dumping a pool's metadata as text: the XML of the thin tools, or a form for people.
//!
//! One thread walks the trees and reads leaves ahead (`stream`), the caller's formats and writes.
//! Memory does not grow with the number of mappings: a few batches of leaves, the nodes above them,
//! and nine bytes for every metadata block where sharing is shown.

mod form;
mod leaf;
mod sharing;
mod source;
mod stream;

use std::io::Write;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::Result;
use persistent_data::MetaBlock;

use crate::DeviceId;
use form::Printer;
use sharing::Sharing;
use source::SourceDevice;

pub(crate) use leaf::Leaf;
pub use source::View;
pub(crate) use source::{Fields, Source};
pub(crate) use stream::{Feeder, Item, stream};

/// How the text is to be laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The XML that [`restore`](crate::restore::restore) and `thin_restore` read.
    #[default]
    Xml,
    /// Lines for people, as `thin_dump --format human_readable` has them.
    HumanReadable,
}

/// Whose output the text is equal to, byte for byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// thin-provisioning-tools 1.x. What devices share is defined once (`def`) and referred to
    /// (`ref`), so the dump grows with the metadata and not with the number of snapshots.
    /// `flags` is there only where a check is needed, and no line end follows the last line.
    #[default]
    Tools1,
    /// thin-provisioning-tools 0.9. Every device has all of its mappings.
    Tools09,
}

/// What is to be dumped, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How the text is laid out.
    pub form: Form,
    /// Whose output it is equal to.
    pub dialect: Dialect,
    /// Which state is dumped.
    pub view: View,
    /// The devices that are dumped; `None` for all.
    pub devices: Option<Vec<DeviceId>>,
    /// Leave out the mappings.
    pub skip_mappings: bool,
}

/// Where in the text something stands.
enum Event {
    BeginDefinition(MetaBlock),
    EndDefinition,
    Reference(MetaBlock),
    BeginDevice(SourceDevice),
    EndDevice,
}

/// Writes the metadata on `metadata` to `out` as text. Opens nothing for writing.
///
/// # Errors
/// `Corrupt` for broken metadata (the text is incomplete then), `NotFound` for a device or a
/// metadata snapshot that is not there; the failures of the device and of `out`.
pub fn dump(metadata: Arc<dyn BlockDevice>, options: &Options, out: impl Write) -> Result<()> {
    let source = Source::open(metadata, options.view)?;
    let devices = selected(&source, options.devices.as_deref())?;
    let mut printer = Printer::new(out, options.form, options.dialect);
    printer.begin(&source.fields)?;
    let feed = |feeder: &mut Feeder<'_, Event>| match (options.skip_mappings, options.dialect) {
        (true, _) => feed_heads(feeder, &devices),
        (false, Dialect::Tools09) => feed_all(feeder, &source, &devices),
        (false, Dialect::Tools1) => feed_shared(feeder, &source, &devices),
    };
    stream(source.metadata(), feed, |item| match item {
        Item::Leaf(leaf) => leaf.entries().try_for_each(|(key, value)| printer.map(key, value)),
        Item::Event(Event::BeginDefinition(name)) => printer.begin_definition(name),
        Item::Event(Event::EndDefinition) => printer.end_definition(),
        Item::Event(Event::Reference(name)) => printer.reference(name),
        Item::Event(Event::BeginDevice(device)) => printer.begin_device(&device),
        Item::Event(Event::EndDevice) => printer.end_device(),
    })?;
    printer.end()
}

/// The devices to be dumped, ascending.
fn selected(source: &Source, ids: Option<&[DeviceId]>) -> Result<Vec<SourceDevice>> {
    let Some(ids) = ids else { return Ok(source.devices.clone()) };
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| source.device(id)).collect()
}

fn feed_heads(feeder: &mut Feeder<'_, Event>, devices: &[SourceDevice]) -> Result<()> {
    for device in devices {
        feeder.event(Event::BeginDevice(*device))?;
        feeder.event(Event::EndDevice)?;
    }
    Ok(())
}

fn feed_all(
    feeder: &mut Feeder<'_, Event>,
    source: &Source,
    devices: &[SourceDevice],
) -> Result<()> {
    for device in devices {
        feeder.event(Event::BeginDevice(*device))?;
        source.leaves(device.root, &mut |leaf| feeder.leaf(leaf))?;
        feeder.event(Event::EndDevice)?;
    }
    Ok(())
}

fn feed_shared(
    feeder: &mut Feeder<'_, Event>,
    source: &Source,
    devices: &[SourceDevice],
) -> Result<()> {
    let sharing = Sharing::of(source, devices)?;
    for head in sharing.shared_heads() {
        feeder.event(Event::BeginDefinition(head))?;
        sharing.run(head).try_for_each(|leaf| feeder.leaf(leaf))?;
        feeder.event(Event::EndDefinition)?;
    }
    for device in devices {
        feeder.event(Event::BeginDevice(*device))?;
        let mut last = None;
        source.leaves(device.root, &mut |leaf| {
            let goes_on = last.replace(leaf).is_some_and(|last| sharing.same_run(last, leaf));
            match (sharing.is_shared(leaf), goes_on) {
                (true, true) => Ok(()),
                (true, false) => feeder.event(Event::Reference(leaf)),
                (false, _) => feeder.leaf(leaf),
            }
        })?;
        feeder.event(Event::EndDevice)?;
    }
    Ok(())
}
