//! The options of new images, as qemu-img's `-o` has them.

use std::time::Duration;

use block_types::{Error, ErrorKind, Result, parse_size};
use disk_image::qcow2::{self, Compression, Preallocation};

use super::ImageFormat;

/// How long it takes to open a new encrypted image unless told otherwise, as with QEMU.
const UNLOCKING: Duration = Duration::from_secs(2);
/// The versions of qcow2 by their names.
const VERSIONS: &[(&str, u32)] = &[("0.10", 2), ("v2", 2), ("1.1", 3), ("v3", 3)];

/// Options of a new image: `cluster_size=128K,compat=1.1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSettings(Vec<(String, String)>);

impl ImageSettings {
    /// Reads `NAME=VALUE,...`; a name alone is `NAME=on`.
    pub fn parse(text: &str) -> Self {
        let words = text.split(',').filter(|word| !word.is_empty());
        Self(
            words
                .map(|word| {
                    let (name, value) = word.split_once('=').unwrap_or((word, "on"));
                    (name.to_owned(), value.to_owned())
                })
                .collect(),
        )
    }

    /// Adds those of `other`, which count where both name the same.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }

    /// Sets what of `options` is named here.
    pub(super) fn apply_to_qcow2(&self, options: &mut qcow2::CreateOptions) -> Result<()> {
        let mut time = UNLOCKING;
        for (name, value) in &self.0 {
            match name.as_str() {
                "compat" => {
                    options.version = choose(name, value, VERSIONS)?;
                }
                "cluster_size" => options.cluster_size = parse_size(value)?,
                "refcount_bits" => {
                    options.refcount_bits = value.parse().map_err(|_| wrong(name, value))?;
                }
                "extended_l2" => options.extended_l2 = switch(name, value)?,
                "lazy_refcounts" => options.lazy_refcounts = switch(name, value)?,
                "compression_type" => {
                    let known = [("zlib", Compression::Zlib), ("zstd", Compression::Zstd)];
                    options.compression = choose(name, value, &known)?;
                }
                "preallocation" => options.preallocation = preallocation(name, value)?,
                "data_file" => options.data_file = Some(value.into()),
                "encrypt.format" => choose(name, value, &[("luks", ())])?,
                "encrypt.iter-time" => {
                    let millis = value.parse().map_err(|_| wrong(name, value))?;
                    time = Duration::from_millis(millis);
                }
                "data_file_raw" => options.data_file_raw = switch(name, value)?,
                _ => return Err(unknown(name, ImageFormat::Qcow2)),
            }
        }
        if self.0.iter().any(|(name, _)| name == "encrypt.format") {
            // Who makes the image fills in the secret, and what others call it by.
            let (secret, uuid) = (qcow2::Secret::new(Vec::new()), String::new());
            options.encryption = Some(qcow2::NewEncryption { secret, time, uuid });
        }
        Ok(())
    }

    /// What is to be changed in a qcow2 image that is there.
    pub(super) fn amendment(&self) -> Result<qcow2::Amend> {
        let mut what = qcow2::Amend::default();
        for (name, value) in &self.0 {
            match name.as_str() {
                "compat" => what.version = Some(choose(name, value, VERSIONS)?),
                "refcount_bits" => {
                    what.refcount_bits = Some(value.parse().map_err(|_| wrong(name, value))?);
                }
                "lazy_refcounts" => what.lazy_refcounts = Some(switch(name, value)?),
                _ => {
                    let problem = "cannot be changed in an image that is there";
                    let object = format!("option '{name}'");
                    return Err(Error::new(ErrorKind::Invalid, object, problem)
                        .advise("there is compat, lazy_refcounts and refcount_bits"));
                }
            }
        }
        Ok(what)
    }

    /// Whether a VHD is to be fixed.
    pub(super) fn fixed_vhd(&self) -> Result<bool> {
        let mut fixed = false;
        for (name, value) in &self.0 {
            match name.as_str() {
                "subformat" => {
                    fixed = choose(name, value, &[("dynamic", false), ("fixed", true)])?;
                }
                _ => return Err(unknown(name, ImageFormat::Vhd)),
            }
        }
        Ok(fixed)
    }

    /// Whether a raw image is to have its space from the beginning.
    pub(super) fn provisioned_raw(&self) -> Result<bool> {
        let mut provisioned = false;
        for (name, value) in &self.0 {
            match name.as_str() {
                "preallocation" => {
                    provisioned = choose(name, value, &[("off", false), ("falloc", true)])?;
                }
                _ => return Err(unknown(name, ImageFormat::Raw)),
            }
        }
        Ok(provisioned)
    }
}

fn preallocation(name: &str, value: &str) -> Result<Preallocation> {
    let known = [
        ("off", Preallocation::Off),
        ("metadata", Preallocation::Metadata),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ];
    choose(name, value, &known)
}

fn switch(name: &str, value: &str) -> Result<bool> {
    choose(name, value, &[("on", true), ("off", false)])
}

fn choose<T: Copy>(name: &str, value: &str, known: &[(&str, T)]) -> Result<T> {
    let found = known.iter().find(|(word, _)| *word == value);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        wrong(name, value).advise(format!("say one of {}", words.join(", ")))
    })
}

fn wrong(name: &str, value: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("option '{name}'"), format!("cannot be '{value}'"))
}

fn unknown(name: &str, format: ImageFormat) -> Error {
    let known = match format {
        ImageFormat::Raw => "preallocation",
        ImageFormat::Qcow2 => {
            "cluster_size, compat, compression_type, data_file, data_file_raw, encrypt.format, \
             encrypt.iter-time, extended_l2, lazy_refcounts, preallocation and refcount_bits"
        }
        ImageFormat::Vhd => "subformat",
    };
    Error::new(
        ErrorKind::Invalid,
        format!("option '{name}'"),
        format!("is none of a {format} image"),
    )
    .advise(format!("there is {known}; a backing file is named with -b and -F"))
}

#[cfg(test)]
mod tests {
    use super::ImageSettings;
    use block_types::ByteCount;
    use disk_image::qcow2::{Compression, CreateOptions};

    fn qcow2(text: &str) -> block_types::Result<CreateOptions> {
        let mut options = CreateOptions::new(ByteCount::new(1 << 20));
        ImageSettings::parse(text).apply_to_qcow2(&mut options).map(|()| options)
    }

    #[test]
    fn options_as_qemu_img_writes_them() {
        let text = "cluster_size=128K,compat=v3,compression_type=zstd,lazy_refcounts";
        let options = qcow2(text).expect("known");
        assert_eq!(options.cluster_size, ByteCount::new(128 << 10));
        assert_eq!(options.compression, Compression::Zstd);
        assert!(options.version == 3 && options.lazy_refcounts && !options.extended_l2);
        assert_eq!(qcow2("compat=0.10").expect("known").version, 2);
        for bad in ["compat=1.2", "cluster=1", "extended_l2=yes", "refcount_bits=x", "=", "x"] {
            let error = qcow2(bad).expect_err("refused");
            assert_eq!(error.kind(), block_types::ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn every_format_has_its_own() {
        assert!(ImageSettings::parse("subformat=fixed").fixed_vhd().expect("known"));
        assert!(!ImageSettings::parse("").fixed_vhd().expect("known"));
        assert!(ImageSettings::parse("compat=1.1").fixed_vhd().is_err());
        assert!(ImageSettings::parse("preallocation=falloc").provisioned_raw().expect("known"));
        assert!(ImageSettings::parse("preallocation=metadata").provisioned_raw().is_err());
    }
}
