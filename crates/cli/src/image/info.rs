//! `firn image info`.

use std::fmt::Write as _;
use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;
use volume::{FormatSpecific, ImageFormat, ImageInfo};

use super::snapshot::list;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Show what an image says of itself.
///
/// Nothing is opened but the file itself, whatever it says, and it may be in use. With --json the
/// fields are those of 'qemu-img info'.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image info disk.qcow2 --json")]
pub(crate) struct Info {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// Its format: raw, qcow2 or vhd. Found out if not said.
    #[arg(short = 'f', long, value_name = "FORMAT")]
    format: Option<ImageFormat>,

    /// As of qemu-img; it may be in use anyway.
    #[arg(short = 'U', long)]
    force_share: bool,
}

impl Info {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let info = ImageInfo::read(&self.path, self.format)?;
        output.result(&info, || describe(&info))?;
        Ok(DONE)
    }
}

/// What an image says, a figure per line.
fn describe(info: &ImageInfo) -> String {
    let size = |bytes: u64| format!("{} ({bytes} bytes)", format_size(ByteCount::new(bytes)));
    let mut lines = vec![
        ("image", info.filename.clone()),
        ("format", info.format.to_owned()),
        ("virtual size", size(info.virtual_size)),
        ("disk size", format_size(ByteCount::new(info.actual_size))),
    ];
    let cluster = info.cluster_size.map(|size| format_size(ByteCount::new(size)));
    lines.extend(cluster.map(|size| ("cluster size", size)));
    if info.encrypted {
        lines.push(("encrypted", "yes".to_owned()));
    }
    if info.dirty_flag {
        lines.push(("dirty", "yes: it was not closed".to_owned()));
    }
    lines.extend(info.backing_filename.clone().map(|name| ("backing file", name)));
    lines.extend(info.backing_filename_format.clone().map(|name| ("backing format", name)));
    lines.extend(info.format_specific.iter().flat_map(specific));
    let mut text = String::new();
    for (what, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<18}{value}", format!("{what}:"));
    }
    if !info.snapshots.is_empty() {
        text.push('\n');
        text.push_str(&list(&info.snapshots));
    }
    if let Some(FormatSpecific::Qcow2 { bitmaps, .. }) = &info.format_specific
        && !bitmaps.is_empty()
    {
        text.push('\n');
        text.push_str(&super::bitmap::list(bitmaps));
    }
    text
}

/// What only the image's format has.
fn specific(specific: &FormatSpecific) -> Vec<(&'static str, String)> {
    let yes = |set: bool| if set { "yes" } else { "no" }.to_owned();
    match specific {
        FormatSpecific::Qcow2 {
            compat,
            compression_type,
            lazy_refcounts,
            refcount_bits,
            corrupt,
            extended_l2,
            data_file,
            data_file_raw,
            bitmaps: _,
            encrypt,
        } => {
            let mut lines = vec![
                ("compat", (*compat).to_owned()),
                ("compression", (*compression_type).to_owned()),
                ("refcount bits", refcount_bits.to_string()),
                ("lazy refcounts", yes(*lazy_refcounts)),
                ("extended L2", yes(*extended_l2)),
                ("corrupt", yes(*corrupt)),
            ];
            lines.extend(encrypt.map(|how| ("encryption", how.format.to_owned())));
            lines.extend(data_file.clone().map(|name| ("data file", name)));
            lines.extend(data_file_raw.map(|raw| ("raw data file", yes(raw))));
            lines
        }
        FormatSpecific::Vhd { subformat, id, hidden, parent_id } => {
            let mut lines = vec![
                ("subformat", (*subformat).to_owned()),
                ("id", id.clone()),
                ("hidden", yes(*hidden)),
            ];
            lines.extend(parent_id.clone().map(|id| ("parent's id", id)));
            lines
        }
    }
}
