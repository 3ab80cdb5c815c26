//! Compressed clusters: one at a time, in bounded memory.
//!
//! What is decompressed goes straight into a buffer of one cluster, so nothing that an image says
//! makes it take more. Section "Compressed Clusters Descriptor" of the specification.

use std::collections::VecDeque;
use std::sync::Arc;

use block_types::{Error, ErrorKind, Result};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use parking_lot::Mutex;
use zstd::zstd_safe::find_frame_compressed_size;

use super::entry::Descriptor;
use super::header::Compression;

/// The window of deflate that old readers expect.
const WINDOW_BITS: u8 = 12;

/// Clusters that are kept decompressed.
const KEPT: usize = 8;

/// The clusters that were decompressed last.
#[derive(Default)]
pub(super) struct Decompressed {
    kept: Mutex<VecDeque<(Descriptor, Arc<Vec<u8>>)>>,
}

impl Decompressed {
    /// The cluster of `descriptor`, if it is kept.
    pub(super) fn get(&self, descriptor: Descriptor) -> Option<Arc<Vec<u8>>> {
        let kept = self.kept.lock();
        let found = kept.iter().find(|(known, _)| *known == descriptor);
        found.map(|(_, bytes)| Arc::clone(bytes))
    }

    /// Keeps a cluster, and forgets the one that came first.
    pub(super) fn put(&self, descriptor: Descriptor, bytes: &Arc<Vec<u8>>) {
        let mut kept = self.kept.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((descriptor, Arc::clone(bytes)));
    }

    /// Forgets everything: places are about to be used again.
    pub(super) fn clear(&self) {
        self.kept.lock().clear();
    }
}

/// Fills `cluster` from `data`, which may go on behind what belongs to it.
///
/// # Errors
/// What is wrong with the data, in words.
pub(super) fn decompress(
    compression: Compression,
    data: &[u8],
    cluster: &mut [u8],
) -> std::result::Result<(), String> {
    let filled = match compression {
        Compression::Zlib => inflate(data, cluster)?,
        Compression::Zstd => {
            let frame = find_frame_compressed_size(data)
                .map_err(|code| zstd::zstd_safe::get_error_name(code).to_owned())?;
            let frame = data.get(..frame).ok_or("the frame is cut short")?;
            zstd::bulk::decompress_to_buffer(frame, cluster).map_err(|error| error.to_string())?
        }
    };
    if filled == cluster.len() {
        return Ok(());
    }
    Err(format!("the data end after {filled} of {} bytes", cluster.len()))
}

/// Inflates until `cluster` is full or the data end.
fn inflate(data: &[u8], cluster: &mut [u8]) -> std::result::Result<usize, String> {
    let mut inflater = Decompress::new(false);
    // A full buffer is reported as such and is no error: the end mark may still be to come.
    let status = inflater
        .decompress(data, cluster, FlushDecompress::Finish)
        .map_err(|error| error.to_string())?;
    let filled = inflater.total_out() as usize;
    debug_assert!(status == Status::StreamEnd || filled <= cluster.len());
    Ok(filled)
}

/// The compressed `cluster`, or `None` if that is not smaller.
///
/// # Errors
/// [`ErrorKind::Io`] if the compressor fails.
pub(super) fn compress(compression: Compression, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
    let failed = |problem: String| Error::new(ErrorKind::Io, "compression", problem);
    let mut data = vec![0; cluster.len() - 1];
    match compression {
        Compression::Zlib => {
            let mut deflater =
                Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
            let status = deflater
                .compress(cluster, &mut data, FlushCompress::Finish)
                .map_err(|error| failed(error.to_string()))?;
            if status != Status::StreamEnd {
                return Ok(None);
            }
            data.truncate(deflater.total_out() as usize);
        }
        Compression::Zstd => {
            let mut buffer = zstd::bulk::compress(cluster, zstd::DEFAULT_COMPRESSION_LEVEL)
                .map_err(|error| failed(error.to_string()))?;
            if buffer.len() >= cluster.len() {
                return Ok(None);
            }
            std::mem::swap(&mut data, &mut buffer);
        }
    }
    Ok(Some(data))
}

#[cfg(test)]
mod tests {
    use super::{Compression, compress, decompress};

    const KINDS: [Compression; 2] = [Compression::Zlib, Compression::Zstd];

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| b"snow on snow on firn "[i % 21] ^ (i / 4000) as u8).collect()
    }

    #[test]
    fn there_and_back_with_a_neighbour_behind() {
        for kind in KINDS {
            for size in [512, 65536, 2 << 20] {
                let cluster = text(size);
                let mut data = compress(kind, &cluster).unwrap().expect("it shrinks");
                assert!(data.len() < size);
                data.extend_from_slice(&[0xff; 700]);
                let mut back = vec![0; size];
                decompress(kind, &data, &mut back).unwrap();
                assert!(back == cluster, "{kind:?} {size}");
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_compressed() {
        let mut noise = vec![0; 4096];
        testkit::rng::Rng::new(1).fill(&mut noise);
        for kind in KINDS {
            assert_eq!(compress(kind, &noise).unwrap(), None);
        }
    }

    #[test]
    fn damage_is_an_error_and_bombs_stay_small() {
        for kind in KINDS {
            let data = compress(kind, &text(65536)).unwrap().expect("it shrinks");
            let mut cluster = vec![0; 65536];
            assert!(decompress(kind, &data[..data.len() / 2], &mut cluster).is_err());
            assert!(decompress(kind, &[0xa5; 600], &mut cluster).is_err());
            assert!(decompress(kind, &[], &mut cluster).is_err());
            // Too little data.
            assert!(decompress(kind, &data, &mut vec![0; 65537]).is_err());
        }
        // More data than a cluster holds: deflate stops when it is full, a frame is refused.
        let bomb = compress(Compression::Zlib, &vec![0; 1 << 20]).unwrap().expect("it shrinks");
        decompress(Compression::Zlib, &bomb, &mut [1; 512]).unwrap();
        let bomb = compress(Compression::Zstd, &vec![0; 1 << 20]).unwrap().expect("it shrinks");
        assert!(decompress(Compression::Zstd, &bomb, &mut [1; 512]).is_err());
    }
}
