//! Random sequences of messages, writes and discards, given to Linux 6.1 and to Firn alike: every
//! answer is the same, and so is every status line, every mapping and every byte in the end.
//!
//! What may differ, and why:
//! - the numbers of data blocks, since the two allocate in another order: dumps are compared with
//!   data blocks renamed by their first appearance, so that what is shared with what still counts;
//! - metadata blocks in use, and the block of a metadata snapshot: the kernel's transactions copy
//!   other nodes than a sorted batch does, and split them elsewhere.
//!
//! `FIRN_LONG=1` runs ten times as many sequences.

mod dump;
mod firn;
mod linux;
mod sequence;

use std::thread;

use sequence::Sequence;

/// Sequences that one run of Linux takes.
const BATCH: u64 = 8;
/// Runs of Linux: a sequence takes a second or two of processor time in it.
const BATCHES: u64 = 1;

/// What is left of a sequence: answers and status lines, and the metadata.
pub(super) struct Trace {
    pub(super) answers: Vec<String>,
    pub(super) metadata: Vec<u8>,
}

#[test]
fn linux_and_firn_do_the_same() {
    let batches = if std::env::var_os("FIRN_LONG").is_some() { 10 * BATCHES } else { BATCHES };
    for batch in 0..batches {
        let seeds = batch * BATCH..(batch + 1) * BATCH;
        let sequences: Vec<Sequence> = seeds.clone().map(Sequence::new).collect();
        let (linux, firn) = thread::scope(|scope| {
            let linux = scope.spawn(|| linux::run(&sequences));
            let firn: Vec<Trace> = sequences.iter().map(firn::run).collect();
            (linux.join().expect("Linux did it"), firn)
        });
        assert_eq!(linux.len(), firn.len());
        for ((seed, linux), firn) in seeds.zip(&linux).zip(&firn) {
            compare(seed, linux, firn);
        }
    }
}

fn compare(seed: u64, linux: &Trace, firn: &Trace) {
    let both = linux.answers.iter().zip(&firn.answers).enumerate();
    for (number, (theirs, ours)) in both {
        let before = &firn.answers[number.saturating_sub(12)..number];
        assert!(
            alike(theirs) == alike(ours),
            "seed {seed}, after\n{}\nLinux {theirs}\nFirn  {ours}",
            before.join("\n")
        );
    }
    assert_eq!(linux.answers.len(), firn.answers.len(), "seed {seed}");
    let [linux, firn] = [linux, firn].map(|trace| dump::of(&trace.metadata));
    assert_eq!(linux, firn, "seed {seed}");
}

/// An answer without what may differ.
fn alike(answer: &str) -> String {
    let mut words: Vec<&str> = answer.split(' ').collect();
    if words.get(3) == Some(&"thin-pool") {
        words[5] = words[5].split_once('/').map_or(words[5], |(_, total)| total);
        words[7] = if words[7] == "-" { "-" } else { "held" };
    }
    words.join(" ")
}
