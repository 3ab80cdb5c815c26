//! What a disk is made of at one moment: the node on top, and the chain below it.

use std::sync::Arc;

use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use crate::NodeId;
use crate::chain::Chain;
use crate::files::{FileNumber, Files};
use crate::layer::Layer;
use crate::mirror::Mirror;

/// The nodes of a disk.
pub(crate) struct View {
    pub(crate) top: Arc<Layer>,
    pub(crate) top_file: FileNumber,
    pub(crate) below: Arc<Chain>,
    below_files: Vec<FileNumber>,
    /// Set while the top is merged into a node below.
    pub(crate) mirror: Option<Arc<Mirror>>,
}

/// A run of a disk.
pub(crate) struct Held<'v> {
    pub(crate) len: ByteCount,
    /// Who holds it, and where its own file is known; nobody does what reads as zeros.
    pub(crate) by: Option<(&'v Layer, FileNumber)>,
}

impl View {
    /// `top` over `below`, whose files are entered into `files`.
    pub(crate) fn new(files: &Files, top: Arc<Layer>, below: Arc<Chain>) -> Result<Self> {
        let top_file = files.enter(&top.file)?;
        let entered = below.layers().iter().map(|layer| files.enter(&layer.file));
        let below_files = entered.collect::<Result<Vec<_>>>()?;
        Ok(Self { top, top_file, below, below_files, mirror: None })
    }

    /// The same with writes mirrored.
    pub(crate) fn mirrored(&self, mirror: Arc<Mirror>) -> Self {
        Self {
            top: Arc::clone(&self.top),
            top_file: self.top_file,
            below: Arc::clone(&self.below),
            below_files: self.below_files.clone(),
            mirror: Some(mirror),
        }
    }

    /// The same without.
    pub(crate) fn unmirrored(&self) -> Self {
        Self {
            top: Arc::clone(&self.top),
            top_file: self.top_file,
            below: Arc::clone(&self.below),
            below_files: self.below_files.clone(),
            mirror: None,
        }
    }

    /// The nodes, the topmost first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        let below = self.below.layers().iter().map(|layer| &layer.id);
        std::iter::once(&self.top.id).chain(below)
    }

    /// The run at the start of `range`, which is not empty and inside the disk.
    pub(crate) fn run(&self, range: ByteRange) -> Result<Held<'_>> {
        let (len, own) = self.top.find(range)?;
        if own.is_some() {
            return Ok(Held { len, by: Some((&self.top, self.top_file)) });
        }
        let run = self.below.run(ByteRange::new(range.start, len))?;
        Ok(self.held_below(run.len, run.layer))
    }

    fn held_below(&self, len: ByteCount, layer: Option<usize>) -> Held<'_> {
        let by = layer.map(|layer| (&*self.below.layers()[layer], self.below_files[layer]));
        Held { len, by }
    }

    /// The file and the place of the run at the start of `range`, if that is known; of what reads
    /// as zeros there is none. Never blocks.
    pub(crate) fn place(
        &self,
        range: ByteRange,
    ) -> Option<(ByteCount, Option<(FileNumber, ByteOffset)>)> {
        let own = self.top.image.own_run(range)?;
        if let Some(at) = own.at {
            return Some((own.len, Some((self.top_file, at))));
        }
        let run = self.below.known_run(ByteRange::new(range.start, own.len))?;
        let Some((layer, file)) = self.held_below(run.len, run.layer).by else {
            return Some((run.len, None));
        };
        let held = layer.image.own_run(ByteRange::new(range.start, run.len))?;
        Some((held.len, Some((file, held.at?))))
    }
}
