//! The header as it stands in the file: patched where a field changed, or built anew.

use std::os::unix::ffi::OsStringExt;

use block_types::{Error, ErrorKind, Result};
use zerocopy::IntoBytes;

use super::header::{
    BACKING_LIMIT, Compression, Encryption, Header, SECTOR_ZERO, V2_LENGTH, V3_LENGTH,
};
use super::layout::{HeaderV2, MAGIC};

impl Header {
    /// The first sector as the fields say, everything else in it as it was.
    pub(super) fn sector_zero(&self) -> Vec<u8> {
        let mut area = self.area.clone();
        self.patch(&mut area);
        area.resize(SECTOR_ZERO.max(area.len()), 0);
        area.truncate(SECTOR_ZERO);
        area
    }

    /// Puts the fields that can change over the bytes of the header.
    pub(super) fn patch(&self, area: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
        put(24, &self.size.get().to_be_bytes());
        put(36, &((self.l1.len.get() / 8) as u32).to_be_bytes());
        put(40, &self.l1.start.get().to_be_bytes());
        put(48, &self.refcount_table.start.get().to_be_bytes());
        let clusters = self.refcount_table.len.get() >> self.geometry.cluster_bits;
        put(56, &(clusters as u32).to_be_bytes());
        put(60, &self.snapshot_count.to_be_bytes());
        put(64, &self.snapshots_at.get().to_be_bytes());
        if self.version > 2 {
            put(72, &self.incompatible.to_be_bytes());
            put(80, &self.compatible.to_be_bytes());
            put(88, &self.autoclear.to_be_bytes());
            put(96, &self.geometry.refcount_order.to_be_bytes());
        }
    }

    /// Builds `area` anew from the fields, for an image that is created: header, extensions, the
    /// backing file's name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if that does not fit into one cluster.
    pub(super) fn build(&mut self, name: &str) -> Result<()> {
        let length = if self.version == 2 { V2_LENGTH } else { V3_LENGTH + 8 };
        let mut area = vec![0; length];
        let names = self.extensions.encode();
        area.extend_from_slice(&names);
        let backing = self.backing.clone().map(OsStringExt::into_vec);
        let backing_at = backing.as_ref().map_or(0, |_| area.len());
        let backing_len = backing.as_ref().map_or(0, Vec::len);
        area.extend_from_slice(&backing.unwrap_or_default());
        let v2 = HeaderV2 {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_file_offset: (backing_at as u64).into(),
            backing_file_size: (backing_len as u32).into(),
            cluster_bits: self.geometry.cluster_bits.into(),
            size: 0.into(),
            crypt_method: match self.encryption {
                None => 0.into(),
                Some(Encryption::Aes) => 1.into(),
                Some(Encryption::Luks) => 2.into(),
            },
            l1_size: 0.into(),
            l1_table_offset: 0.into(),
            refcount_table_offset: 0.into(),
            refcount_table_clusters: 0.into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
        };
        area[..V2_LENGTH].copy_from_slice(v2.as_bytes());
        if self.version > 2 {
            area[100..104].copy_from_slice(&(length as u32).to_be_bytes());
            area[104] = u8::from(self.compression == Compression::Zstd);
        }
        self.patch(&mut area);
        if area.len() as u64 > self.geometry.cluster().get() || backing_len > BACKING_LIMIT as usize
        {
            let problem = "the names in the header do not fit into one cluster";
            return Err(Error::new(ErrorKind::Invalid, name, problem)
                .advise("take larger clusters or shorter names"));
        }
        self.area = area;
        Ok(())
    }
}
