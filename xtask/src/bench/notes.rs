//! What limits the rows that miss their targets, as it was measured: a sentence stays here while
//! the tables are written anew.

/// Beginnings of a row's two names (what, against), and the sentence.
const NOTES: &[(&str, &str, &str)] = &[
    (
        "snapshot-stall",
        "1 TiB mapped",
        "writers wait for a commit, not for the snapshot, which holds them for less than a \
         millisecond: with all of a tebibyte shared, thousands of random writes copy as many \
         leaves, a commit takes 0.1 to 0.4 seconds, and the metadata budget runs out meanwhile.",
    ),
    (
        "snapshot-stall",
        "1 GiB mapped, direct",
        "the copies, 64 KiB for each write, which fill the disk; the longest wait is the same \
         without a snapshot, and taking one holds writers for less than a millisecond.",
    ),
    (
        "snapshot-stall",
        "1 GiB mapped, 10,000 snapshots, direct",
        "the copies themselves, as with no snapshots before.",
    ),
];

/// What is known about the row.
pub(super) fn note(what: &str, against: &str) -> Option<&'static str> {
    find(NOTES, what, against)
}

fn find(notes: &'static [(&str, &str, &str)], what: &str, against: &str) -> Option<&'static str> {
    let fits = |&&(a, b, _): &&(&str, &str, &str)| what.starts_with(a) && against.starts_with(b);
    notes.iter().find(fits).map(|&(_, _, sentence)| sentence)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_note_is_found_by_how_the_names_begin() {
        let notes =
            &[("first-write", "qemu-nbd-qcow2, direct", "the disk"), ("memory", "", "maps")];
        assert_eq!(super::find(notes, "memory", "1 TiB mapped"), Some("maps"));
        assert_eq!(super::find(notes, "first-write", "qemu-nbd-qcow2, cached"), None);
    }
}
