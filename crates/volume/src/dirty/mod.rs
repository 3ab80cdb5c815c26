//! Dirty bitmaps that outlive a crash.
//!
//! A [`Recorder`] knows of one bitmap what has changed, exactly, and what is kept of it: bits that
//! come back set whatever crashes. A write goes on at once where both have it; where the kept one
//! has not, the bits of a whole *region* are put on the disk first, all set, and then the write
//! goes on. So what a crash leaves is never too little (NEVER-UNDER-REPORT), and too much by what
//! lies in a region at most: the region is the last consistent level of the bitmap. In lulls
//! regions are *refined*: their exact bits take the place of the coarse ones.
//!
//! ```text
//!   write --- Tracked: is all of it kept? --- yes: note it, and on to the device
//!                |                                     no lock, no I/O
//!                no: Recorder::cover --- BitmapStore::put (set, in one durable step for all who
//!                                        wait), and then the same question again
//! ```
//!
//! An idle disk, and one whose writes hit what is dirty already, changes nothing on the disk, and
//! so its bitmaps stay as consistent as they were.

mod recorder;
mod store;
#[cfg(test)]
mod tests;
mod tracked;

pub use recorder::Recorder;
pub use store::{BitmapPart, BitmapStore};
pub use tracked::Tracked;
