//! Header extensions: kept byte for byte, whether they are known or not.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{ExtensionHead, FeatureName, extension, feature};

/// One header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) kind: u32,
    /// Without the padding.
    pub(crate) data: Vec<u8>,
}

/// All header extensions, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions(Vec<Extension>);

/// The sort of a feature, as the feature name table numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FeatureKind {
    Incompatible = 0,
    Compatible = 1,
    Autoclear = 2,
}

/// The features of this format, for the names of an image that is created.
const NAMES: &[(FeatureKind, u64, &str)] = &[
    (FeatureKind::Incompatible, feature::DIRTY, "dirty bit"),
    (FeatureKind::Incompatible, feature::CORRUPT, "corrupt bit"),
    (FeatureKind::Incompatible, feature::DATA_FILE, "external data file"),
    (FeatureKind::Incompatible, feature::COMPRESSION, "compression type"),
    (FeatureKind::Incompatible, feature::EXTENDED_L2, "extended L2 entries"),
    (FeatureKind::Compatible, feature::LAZY_REFCOUNTS, "lazy refcounts"),
    (FeatureKind::Autoclear, feature::BITMAPS, "bitmaps"),
    (FeatureKind::Autoclear, feature::RAW_DATA, "raw external data"),
];

impl Extensions {
    /// The extensions in `area`, which begins where they begin and ends with cluster 0; and how
    /// many bytes they take, the end mark included.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub(super) fn parse(area: &[u8]) -> Result<(Self, usize), String> {
        let mut found: Vec<Extension> = Vec::new();
        let mut at = 0;
        loop {
            // Cluster 0 may end without an end mark.
            let Ok((head, rest)) = ExtensionHead::read_from_prefix(&area[at..]) else {
                return Ok((Self(found), at));
            };
            let (kind, length) = (head.kind.get(), head.length.get() as usize);
            if kind == extension::END {
                return Ok((Self(found), at + size_of::<ExtensionHead>()));
            }
            let Some(data) = rest.get(..length) else {
                return Err(format!(
                    "header extension {kind:#x} of {length} bytes reaches past the first cluster"
                ));
            };
            if found.iter().any(|known| known.kind == kind) {
                return Err(format!("header extension {kind:#x} occurs twice"));
            }
            found.push(Extension { kind, data: data.to_vec() });
            at = (at + size_of::<ExtensionHead>() + length.next_multiple_of(8)).min(area.len());
        }
    }

    /// The extensions as they stand in the file, with the end mark.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Extension { kind, data } in &self.0 {
            let head = ExtensionHead { kind: (*kind).into(), length: (data.len() as u32).into() };
            bytes.extend_from_slice(head.as_bytes());
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend_from_slice(&[0; size_of::<ExtensionHead>()]);
        bytes
    }

    /// The data of the extension `kind`.
    pub(super) fn get(&self, kind: u32) -> Option<&[u8]> {
        self.0.iter().find(|known| known.kind == kind).map(|known| known.data.as_slice())
    }

    /// The data of the extension `kind` as a name.
    pub(super) fn name(&self, kind: u32) -> Option<OsString> {
        self.get(kind).map(|data| OsString::from_vec(data.to_vec()))
    }

    /// Adds or replaces an extension.
    pub(super) fn set(&mut self, kind: u32, data: Vec<u8>) {
        match self.0.iter_mut().find(|known| known.kind == kind) {
            Some(known) => known.data = data,
            None => self.0.push(Extension { kind, data }),
        }
    }

    /// All but the extension `kind`.
    pub(super) fn without(&self, kind: u32) -> Self {
        Self(self.0.iter().filter(|known| known.kind != kind).cloned().collect())
    }

    /// The same, the table of feature names behind the others.
    pub(super) fn names_last(&self) -> Self {
        let mut sorted = self.clone();
        sorted.0.sort_by_key(|known| known.kind == extension::FEATURE_NAMES);
        sorted
    }

    /// What the image calls a feature.
    pub(super) fn feature_name(&self, kind: FeatureKind, bit: u32) -> Option<String> {
        let table = self.get(extension::FEATURE_NAMES)?;
        let mut entries = table.chunks_exact(size_of::<FeatureName>());
        entries.find_map(|entry| {
            let entry = FeatureName::read_from_bytes(entry).ok()?;
            let named = entry.kind == kind as u8 && u32::from(entry.bit) == bit;
            let text = entry.name.split(|&byte| byte == 0).next().unwrap_or_default();
            named.then(|| String::from_utf8_lossy(text).into_owned())
        })
    }
}

/// The table of the features that are known here.
pub(super) fn feature_names() -> Vec<u8> {
    let mut table = Vec::new();
    for &(kind, bit, text) in NAMES {
        let mut name = [0; 46];
        name[..text.len()].copy_from_slice(text.as_bytes());
        let bit = bit.trailing_zeros() as u8;
        table.extend_from_slice(FeatureName { kind: kind as u8, bit, name }.as_bytes());
    }
    table
}

/// The bytes of a name.
pub(super) fn name_bytes(name: &OsStr) -> Vec<u8> {
    name.to_os_string().into_vec()
}

#[cfg(test)]
mod tests {
    use super::{Extension, Extensions, FeatureKind, feature_names};
    use crate::qcow2::layout::extension;

    #[test]
    fn unknown_ones_survive() {
        let mut extensions = Extensions::default();
        extensions.set(0x1234, vec![1, 2, 3]);
        extensions.set(extension::BACKING_FORMAT, b"raw".to_vec());
        let bytes = extensions.encode();
        assert_eq!(bytes.len(), 40);
        let (parsed, len) = Extensions::parse(&bytes).unwrap();
        assert_eq!((&parsed, len), (&extensions, 40));
        assert_eq!(parsed.name(extension::BACKING_FORMAT).unwrap(), "raw");
        assert_eq!(parsed.get(0x1234), Some(&[1u8, 2, 3][..]));
    }

    #[test]
    fn overruns_and_repetitions_are_refused() {
        let one = Extensions(vec![Extension { kind: 5, data: vec![0; 8] }]).encode();
        assert!(Extensions::parse(&one[..15]).unwrap_err().contains("0x5"));
        let twice = [&one[..16], &one[..]].concat();
        assert!(Extensions::parse(&twice).unwrap_err().contains("twice"));
        assert_eq!(Extensions::parse(&one[..16]).unwrap().1, 16, "the end mark may be missing");
    }

    #[test]
    fn features_have_names() {
        let mut extensions = Extensions::default();
        extensions.set(extension::FEATURE_NAMES, feature_names());
        let name = |kind, bit| extensions.feature_name(kind, bit);
        assert_eq!(name(FeatureKind::Incompatible, 4).unwrap(), "extended L2 entries");
        assert_eq!(name(FeatureKind::Autoclear, 1).unwrap(), "raw external data");
        assert_eq!(name(FeatureKind::Compatible, 7), None);
    }
}
