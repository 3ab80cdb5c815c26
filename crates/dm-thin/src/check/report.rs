//! What a check says.

/// Findings of one sort that are listed; the rest is only counted.
pub(super) const LISTED: usize = 100;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is broken.
    pub errors: Vec<String>,
    /// Space that nothing refers to: a loss, but no danger.
    pub leaks: Vec<String>,
    /// What is worth knowing, and neither broken nor lost.
    pub warnings: Vec<String>,
    /// Metadata blocks in use that were read or counted.
    pub blocks: u64,
    /// Mappings of all devices; those that snapshots share are counted in each.
    pub mappings: u64,
    /// Whether the pool's flag says that its metadata needs a check.
    pub needs_check: bool,
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Sound,
    /// Space is lost, and nothing else is wrong.
    Leaks,
    /// The metadata is broken.
    Corrupt,
}

impl CheckReport {
    /// What the findings come to: the exit status 0, 3 or 2 of `check` commands.
    pub fn verdict(&self) -> Verdict {
        match (self.errors.is_empty(), self.leaks.is_empty()) {
            (false, _) => Verdict::Corrupt,
            (true, false) => Verdict::Leaks,
            (true, true) => Verdict::Sound,
        }
    }

    pub(super) fn error(&mut self, text: String) {
        self.errors.push(text);
    }

    pub(super) fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    /// Adds errors of one sort: the first in full, of the others how many there are.
    pub(super) fn errors_of(&mut self, what: &str, found: impl IntoIterator<Item = String>) {
        let mut found = found.into_iter();
        self.errors.extend(found.by_ref().take(LISTED));
        let more = found.count() as u64;
        self.errors.extend(and_more(more, what));
    }
}

/// The line behind a list that was cut.
pub(super) fn and_more(more: u64, what: &str) -> Option<String> {
    (more > 0).then(|| format!("and {more} more {what}"))
}
