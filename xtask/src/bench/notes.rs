//! What limits the rows that miss their targets, as it was measured: a sentence stays here while
//! the tables are written anew.

/// Beginnings of a row's two names (what, against), and the sentence.
const NOTES: &[(&str, &str, &str)] = &[
    (
        "cached 4K rand",
        "",
        "the socket and the processors: fio, or the bench's client, uses one processor and the \
         connection's thread the other, 85 to 100 per cent of each. Of the server's time for reads \
         25 to 36 per cent is the copy of the payload into the socket and 10 the copy out of the \
         page cache; the lookup of the mapping is 1.4. A bare file has neither socket nor a second \
         process.",
    ),
    (
        "direct 4K randread",
        "",
        "the disk: at 43,000 requests a second neither client nor server uses half of a processor.",
    ),
    (
        "direct 4K randwrite",
        "",
        "half of the server's time is in io_uring's kernel threads, to which the file system hands \
         writes that it cannot begin at once; requests are 2 to 2.8 times qemu-nbd's all the same.",
    ),
    (
        "cached 1M read",
        "",
        "the copy into the socket: 1 MiB takes the server 0.5 ms, most of it copying; the ratio \
         goes from 0.53 to 0.85 within one run.",
    ),
    (
        "direct 1M read",
        "",
        "the way through the socket: the bare file reaches 1.1 GB/s, and 8 requests of a megabyte \
         that each pass the socket before the next one comes reach 0.89 of that, with a quarter of \
         qemu-nbd's processor time.",
    ),
    (
        "direct 1M write",
        "bare",
        "the socket: a megabyte is copied into and out of it before it is written, which takes 0.3 \
         ms of processor time, six times the bare file's.",
    ),
    (
        "snapshot-stall",
        "1 TiB mapped, direct, 2,000/s",
        "the disk: a commit of half a second's random writes to a shared tebibyte writes 8 MiB of \
         metadata and flushes it. A bare file that is written in the same way has longest writes \
         of 2 to 4 ms beside such a flush, and of 9 to 60 at worst. The snapshot itself holds \
         writers for less than a millisecond.",
    ),
    (
        "snapshot-stall",
        "1 TiB mapped, direct, qd32",
        "the copies, 64 KiB for each write, which fill the disk, and beside them commits of up to \
         30 MiB of metadata on the same two processors; the longest wait is nearly the same \
         without a snapshot.",
    ),
    (
        "snapshot-stall",
        "1 GiB mapped, direct, qd32",
        "the copies, 64 KiB for each write, which fill the disk; the longest wait is the same \
         without a snapshot, and taking one holds writers for less than a millisecond.",
    ),
    (
        "snapshot-stall",
        "1 GiB mapped, 10,000 snapshots, direct, qd32",
        "the copies themselves, as with no snapshots before.",
    ),
    (
        "snapshot-stall",
        "",
        "the page cache: a bare file that gets 64 KiB writes through it into new space, and a \
         flush four times a second, has writes that take 40 to 170 ms.",
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
