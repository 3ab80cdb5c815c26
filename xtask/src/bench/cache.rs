//! The page cache's state, which decides what a buffered write costs.
//!
//! File systems with large folios walk the buffers of a whole folio on a small write: the same 4
//! KiB cost 2 microseconds in a cache of single pages and 60 in one filled by sequential reads. So
//! the state is set before every buffered benchmark, for every contender alike.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use testkit::rng::Rng;

const PAGE: u64 = 4096;

/// Readers at once: enough to keep a disk busy.
const READERS: u64 = 8;

/// All data of the file is in the cache, in single pages: dropped, then read page by page at random
/// with readahead off. Holes stay outside.
pub(super) fn set_small(path: &Path) -> Result<()> {
    set_cold(path)?;
    let file = open(path)?;
    let pages = data_pages(&file)?;
    let (file, pages) = (&file, &pages);
    std::thread::scope(|scope| {
        let readers = (0..READERS).map(|reader| {
            // Every reader has the pages of its residue.
            let pages = pages.iter().skip(reader as usize).step_by(READERS as usize);
            let pages = pages.copied().collect();
            scope.spawn(move || read_shuffled(file, pages, reader))
        });
        let readers: Vec<_> = readers.collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader does not panic"))
    })
    .with_context(|| path.display().to_string())
}

/// The whole pages of the file that hold data.
fn data_pages(file: &File) -> Result<Vec<u64>> {
    let mut pages = Vec::new();
    let mut at = 0;
    loop {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(pages),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(data))?;
        pages.extend(data.div_ceil(PAGE)..at / PAGE);
    }
}

/// Nothing of the file is in the cache, and everything is on the disk.
pub(super) fn set_cold(path: &Path) -> Result<()> {
    let file = open(path)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed).with_context(|| path.display().to_string())
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    fadvise(&file, 0, None, Advice::Random)?;
    Ok(file)
}

fn read_shuffled(file: &File, mut pages: Vec<u64>, seed: u64) -> std::io::Result<()> {
    let mut rng = Rng::new(seed);
    let mut buffer = [0; PAGE as usize];
    for end in (1..=pages.len()).rev() {
        pages.swap(rng.index(end), end - 1);
        std::os::unix::fs::FileExt::read_exact_at(file, &mut buffer, pages[end - 1] * PAGE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn finds_the_data_of_a_sparse_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let file = File::create_new(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 8192], 32 << 20).unwrap();
        file.sync_all().unwrap();
        let pages = super::data_pages(&File::open(&path).unwrap()).unwrap();
        assert!(pages.contains(&8192) && pages.contains(&8193), "{pages:?}");
        assert!(pages.len() < 1024, "holes count as data");
        super::set_small(&path).unwrap();
    }
}
