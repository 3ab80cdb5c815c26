//! What is done to both.

use std::collections::BTreeSet;

use testkit::rng::Rng;

use crate::common::BLOCK;

/// Bytes of the metadata.
pub(super) const METADATA: u64 = 2 << 20;
/// Data blocks at first, and at most.
pub(super) const DATA: [u64; 2] = [600, 900];
/// Blocks of each volume.
pub(super) const VOLUME: u64 = 64;
/// Bytes that writes take their content from.
pub(super) const PATTERNS: u64 = 4 << 20;
/// Operations of a sequence.
const OPERATIONS: u64 = 45;
/// Identifiers that are used.
const IDS: u64 = 7;

/// One operation. Devices are numbers, places and lengths bytes.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// A message to the pool.
    Message(String),
    /// A device comes into use.
    Open(u64),
    /// It goes out of use.
    Close(u64),
    /// Bytes of the patterns, from `from` on, are written to a device in use.
    Write { device: u64, at: u64, len: u64, from: u64 },
    /// A range of a device in use is discarded.
    Discard { device: u64, at: u64, len: u64 },
    /// The pool is closed and opened again, with so many data blocks.
    Reopen { blocks: u64 },
    /// The pool in use gets so many data blocks.
    Grow { blocks: u64 },
    /// The lines of the pool and of the devices in use.
    Status,
    /// Sums of these devices, all of the pool's.
    Sums(Vec<u64>),
}

/// A sequence of operations that can be done, though not all of them succeed.
pub(super) struct Sequence {
    pub(super) seed: u64,
    pub(super) operations: Vec<Operation>,
}

/// What a sequence has come to.
#[derive(Default)]
struct State {
    devices: BTreeSet<u64>,
    open: BTreeSet<u64>,
    transaction: u64,
    blocks: u64,
}

impl Sequence {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut state = State { blocks: DATA[0], ..State::default() };
        let mut operations = vec![state.message("create_thin 0")];
        for number in 1..OPERATIONS {
            operations.extend(state.next(&mut rng));
            if number.is_multiple_of(9) {
                operations.push(Operation::Status);
            }
        }
        operations.push(Operation::Status);
        operations.extend(state.open.iter().map(|&device| Operation::Close(device)));
        if !state.devices.is_empty() {
            operations.push(Operation::Sums(state.devices.iter().copied().collect()));
        }
        Self { seed, operations }
    }
}

impl State {
    fn next(&mut self, rng: &mut Rng) -> Vec<Operation> {
        let device = match self.devices.len() {
            0 => return vec![self.message("create_thin 1")],
            _ => *rng.pick(&self.devices.iter().copied().collect::<Vec<_>>()),
        };
        let (one, other) = (rng.within(0..IDS), rng.within(0..IDS));
        match rng.within(0..100) {
            0..40 => {
                let (at, len) = range(rng, true);
                let from = rng.within(0..(PATTERNS - len) / 512) * 512;
                self.used(device, Operation::Write { device, at, len, from })
            }
            40..50 => {
                let (at, len) = range(rng, false);
                self.used(device, Operation::Discard { device, at, len })
            }
            50..56 => vec![self.message(&format!("create_thin {one}"))],
            56..72 => vec![self.message(&format!("create_snap {one} {device}"))],
            72..74 => vec![self.message(&format!("create_snap {one} {other}"))],
            74..82 => {
                let close = self.close(device);
                let delete = self.message(&format!("delete {device}"));
                close.into_iter().chain([delete]).collect()
            }
            82..84 => vec![self.message(&format!("delete {one}"))],
            84..87 => {
                let current = self.transaction - rng.within(0..3).min(self.transaction) / 2;
                vec![self.message(&format!("set_transaction_id {current} {}", current + 2))]
            }
            87..89 => vec![self.message("reserve_metadata_snap")],
            89..91 => vec![self.message("release_metadata_snap")],
            91..93 => self.close(device).into_iter().collect(),
            93..96 => {
                self.open.clear();
                vec![Operation::Reopen { blocks: self.blocks }]
            }
            _ => {
                self.blocks = rng.within(self.blocks..DATA[1]);
                vec![Operation::Grow { blocks: self.blocks }]
            }
        }
    }

    /// An operation on a device that has to be in use for it.
    fn used(&mut self, device: u64, operation: Operation) -> Vec<Operation> {
        let open = self.open.insert(device).then_some(Operation::Open(device));
        open.into_iter().chain([operation]).collect()
    }

    fn close(&mut self, device: u64) -> Option<Operation> {
        self.open.remove(&device).then_some(Operation::Close(device))
    }

    /// A message, with what it comes to.
    fn message(&mut self, text: &str) -> Operation {
        let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        match (text.split(' ').next(), &numbers[..]) {
            (Some("create_thin"), [id]) => drop(self.devices.insert(*id)),
            (Some("create_snap"), [id, origin]) if self.devices.contains(origin) => {
                self.devices.insert(*id);
            }
            (Some("delete"), [id]) if !self.open.contains(id) => drop(self.devices.remove(id)),
            (Some("set_transaction_id"), [current, new]) if *current == self.transaction => {
                self.transaction = *new;
            }
            _ => {}
        }
        Operation::Message(text.to_owned())
    }
}

/// A range of a volume: some sectors, whole blocks, or anything; what is written is short.
fn range(rng: &mut Rng, short: bool) -> (u64, u64) {
    let (unit, most) = rng.weighted(&[
        (3, (512, 8)),
        (3, (BLOCK, 4)),
        (3, (512, 300)),
        (1, (BLOCK, if short { 4 } else { VOLUME })),
    ]);
    let end = VOLUME * BLOCK / unit;
    // Now and then close to what others have written.
    let area = if rng.chance(1, 2) { end / 4 } else { end };
    let at = rng.within(0..area);
    (at * unit, rng.within(1..most + 1).min(end - at) * unit)
}

/// What writes take their content from.
pub(super) fn patterns() -> Vec<u8> {
    let mut bytes = vec![0; PATTERNS as usize];
    Rng::new(0xf1).fill(&mut bytes);
    bytes
}
