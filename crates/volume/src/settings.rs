//! How a pool is to behave, kept beside it in the file `settings`, so that it outlives whoever has
//! the pool open.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block_types::{Error, ErrorKind, Result};
use dm_thin::{Discards, PoolFeatures, PoolSettings};
use serde::{Deserialize, Serialize};

use crate::NewFile;

/// How a pool is to behave. A pool directory without the file behaves as the default says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Settings {
    /// What a write does that finds no space.
    pub no_space: NoSpace,
    /// Seconds for which it waits before it fails; 0 for as long as it takes.
    pub no_space_timeout: u64,
    /// What becomes of discards.
    pub discards: DiscardSetting,
    /// Whether new blocks read as zeros where they were not written.
    pub zero_new_blocks: bool,
    /// Whether the pool takes no changes.
    pub read_only: bool,
    /// Free data blocks at which an event is raised.
    pub low_water: u64,
    /// When and how the pool grows by itself, if it does.
    pub autogrow: Option<AutoGrow>,
}

/// What a write does that finds no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoSpace {
    /// It waits: the kernel's `queue_if_no_space`.
    Queue,
    /// It fails: the kernel's `error_if_no_space`.
    Error,
}

/// What becomes of discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscardSetting {
    /// Space goes back to the pool, and from there to the data device: `discard_passdown`.
    Passdown,
    /// It goes back to the pool: `no_discard_passdown`.
    Keep,
    /// Nothing: `ignore_discard`.
    Ignore,
}

/// When and how a pool grows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AutoGrow {
    /// Percent of the data blocks in use at which it grows.
    pub threshold: u64,
    /// By so many percent of its size.
    pub step: u64,
    /// To so many bytes at most.
    pub max: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            no_space: NoSpace::Queue,
            no_space_timeout: 60,
            discards: DiscardSetting::Passdown,
            zero_new_blocks: true,
            read_only: false,
            low_water: 0,
            autogrow: None,
        }
    }
}

impl Settings {
    /// Reads the settings of the pool in `dir`.
    ///
    /// # Errors
    /// `Corrupt` for what is no settings, or names some that are not known here.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = path_of(dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(Error::io(path.display().to_string(), "cannot be read", error));
            }
        };
        let settings: Self = serde_json::from_str(&text).map_err(|error| {
            let object = path.display().to_string();
            Error::new(ErrorKind::Corrupt, object, "holds no settings that are understood")
                .because(error)
                .advise("correct it, or remove it to have the defaults")
        })?;
        settings.check()?;
        Ok(settings)
    }

    /// Keeps them for the pool in `dir`, durably. The caller has the pool's lock.
    pub(crate) fn store(&self, dir: &Path) -> Result<()> {
        let path = path_of(dir);
        // What a crash left of an earlier attempt: nobody else writes it under the lock.
        let _ = fs::remove_file(path.with_extension("part"));
        let file = NewFile::create(&path, true)?;
        let text = serde_json::to_string_pretty(self).expect("settings are plain values") + "\n";
        fs::write(file.path(), text)
            .and_then(|()| fs::File::open(file.path())?.sync_all())
            .map_err(|error| Error::io(path.display().to_string(), "cannot be written", error))?;
        file.publish()
    }

    /// Checks that they make sense.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(AutoGrow { threshold, step, .. }) = self.autogrow else { return Ok(()) };
        if (1..100).contains(&threshold) && (1..=1000).contains(&step) {
            return Ok(());
        }
        let problem = format!("cannot grow at {threshold} percent by {step} percent");
        Err(Error::new(ErrorKind::Invalid, "autogrow", problem)
            .advise("the threshold is 1 to 99 percent, the step 1 to 1000"))
    }

    /// As the pool takes them.
    pub(crate) fn of_pool(&self) -> PoolSettings {
        let limit = self.no_space_timeout;
        PoolSettings {
            features: PoolFeatures {
                skip_zeroing: !self.zero_new_blocks,
                discards: match self.discards {
                    DiscardSetting::Passdown => Discards::PassedDown,
                    DiscardSetting::Keep => Discards::Kept,
                    DiscardSetting::Ignore => Discards::Ignored,
                },
                read_only: self.read_only,
                error_if_no_space: self.no_space == NoSpace::Error,
            },
            low_water: self.low_water,
            no_space_timeout: (limit > 0).then(|| Duration::from_secs(limit)),
        }
    }
}

fn path_of(dir: &Path) -> PathBuf {
    dir.join("settings")
}

#[cfg(test)]
mod tests {
    use super::{AutoGrow, DiscardSetting, NoSpace, Settings};
    use block_types::ErrorKind;

    #[test]
    fn settings_are_kept_and_unknown_ones_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Settings::load(dir.path()).expect("read"), Settings::default());
        let settings = Settings {
            no_space: NoSpace::Error,
            no_space_timeout: 0,
            discards: DiscardSetting::Ignore,
            autogrow: Some(AutoGrow { threshold: 70, step: 20, max: Some(1 << 30) }),
            ..Settings::default()
        };
        for _ in 0..2 {
            // An attempt that a crash cut short is no obstacle.
            std::fs::write(dir.path().join("settings.part"), "{").expect("written");
            settings.store(dir.path()).expect("kept");
        }
        assert_eq!(Settings::load(dir.path()).expect("read"), settings);
        for text in ["{\"turbo\": true}", "", "{\"autogrow\": {\"threshold\": 0, \"step\": 1}}"] {
            std::fs::write(dir.path().join("settings"), text).expect("written");
            let error = Settings::load(dir.path()).expect_err("refused");
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid), "{error}");
        }
    }
}
