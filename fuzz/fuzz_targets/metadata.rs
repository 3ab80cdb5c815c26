//! Trees and space maps of persistent-data, behind their checksums: read, and changed where they
//! were found sound.

#![no_main]

use std::ops::ControlFlow;
use std::sync::Arc;

use block_types::{ByteCount, Result};
use firn_fuzz::image::Image;
use libfuzzer_sys::fuzz_target;
use persistent_data::btree::{self, Descend};
use persistent_data::{BLOCK_SIZE, BlockStore, DiskSpaceMap, Transaction};

const DEVICE: ByteCount = ByteCount::new(32 * BLOCK_SIZE as u64);

fuzz_target!(|input: &[u8]| {
    let Some(image) = Image::new(input, DEVICE) else { return };
    let store = Arc::new(BlockStore::new(image.device.clone(), 64));
    let mut entries = 0;
    // An answer or an error: both are right, as long as there is one.
    drop(btree::walk::<u64>(&*store, image.tree, 0, &mut |_, _| {
        entries += 1;
        if entries < 10_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }));
    drop(btree::lookup::<u64>(&*store, image.tree, 7));
    drop(btree::visit_nodes(&*store, image.tree, &mut |_, node| {
        node.node()?;
        Ok(Descend::Yes)
    }));
    // A pool checks its size against the data device before it reads the map.
    if image.map.nr_blocks.get() <= 1 << 20 {
        drop(DiskSpaceMap::open(&*store, &image.map));
    }
    drop(change(&store, &image));
});

/// A commit on top of the image.
fn change(store: &Arc<BlockStore>, image: &Image) -> Result<()> {
    let mut transaction = Transaction::open(Arc::clone(store), &image.map)?;
    let block = transaction.alloc()?;
    transaction.inc(block);
    transaction.dec(block);
    transaction.dec(block);
    btree::empty::<u64>(&mut transaction)?;
    transaction.seal()?;
    transaction.write()?;
    transaction.finish();
    Ok(())
}
