//! A lean NBD client: as many requests in flight as asked for, sent and received in batches.
//!
//! fio's engine is itself the limit above a quarter of a million requests a second; this one costs
//! a fraction of a server. It speaks the fixed newstyle handshake and simple replies, over a unix
//! socket, and leaves only when every request is answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testkit::rng::Rng;

use super::rows::{Access, Load, Sample};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const CLIENT_FLAGS: u32 = 0b11; // fixed newstyle, no zeroes
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;

const REQUEST_LEN: usize = 28;
const REPLY_LEN: usize = 16;

/// Received at once.
const RECEIVE: usize = 1 << 18;

/// Payloads from this size on are sent from where they are.
const LARGE: usize = 1 << 16;

/// How long a client waited at most, in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stall {
    /// From a request to its answer.
    pub(super) request: Duration,
    /// Between two answers, whichever they are.
    pub(super) silence: Duration,
}

/// A connection to an export.
pub(super) struct Client {
    socket: UnixStream,
    size: u64,
}

impl Client {
    /// Connects to the export `name` at `socket`.
    pub(super) fn connect(socket: &Path, name: &str) -> Result<Self> {
        let connected = UnixStream::connect(socket);
        let mut socket = connected.with_context(|| socket.display().to_string())?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        ensure!(be64(&greeting, 0) == NBD_MAGIC && be64(&greeting, 8) == OPTION_MAGIC, "no NBD");
        let mut go = CLIENT_FLAGS.to_be_bytes().to_vec();
        go.extend(OPTION_MAGIC.to_be_bytes());
        go.extend(OPTION_GO.to_be_bytes());
        go.extend((name.len() as u32 + 6).to_be_bytes());
        go.extend((name.len() as u32).to_be_bytes());
        go.extend(name.as_bytes());
        go.extend(0u16.to_be_bytes());
        socket.write_all(&go)?;
        let size = await_export(&mut socket).with_context(|| format!("export '{name}'"))?;
        Ok(Self { socket, size })
    }

    /// The size of the export.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Writes random bytes over the whole export, in pieces of 1 MiB, and flushes nothing.
    pub(super) fn fill(&mut self) -> Result<()> {
        let load = Load { access: Access::Write, block: 1 << 20, depth: 4 };
        let pieces = self.size / u64::from(load.block);
        self.each(load, (0..pieces).map(|piece| piece * u64::from(load.block)))?;
        Ok(())
    }

    /// Runs `load` once at each of `offsets`.
    pub(super) fn each(
        &mut self,
        load: Load,
        mut offsets: impl Iterator<Item = u64>,
    ) -> Result<Sample> {
        Ok(self.play(load, &mut || offsets.next())?.0)
    }

    /// Runs `load` at random aligned offsets for `length`.
    pub(super) fn random(&mut self, load: Load, length: Duration, seed: u64) -> Result<Sample> {
        Ok(self.watch(load, length, seed)?.0)
    }

    /// The same, and how long the longest waits were.
    pub(super) fn watch(
        &mut self,
        load: Load,
        length: Duration,
        seed: u64,
    ) -> Result<(Sample, Stall)> {
        let mut rng = Rng::new(seed);
        let blocks = self.size / u64::from(load.block);
        let deadline = Instant::now() + length;
        let mut next = || {
            let in_time = Instant::now() < deadline;
            in_time.then(|| rng.within(0..blocks) * u64::from(load.block))
        };
        self.play(load, &mut next)
    }

    /// One request at a time, one every `interval`: what a client feels that does not fill the
    /// disk.
    pub(super) fn watch_paced(
        &mut self,
        load: Load,
        interval: Duration,
        length: Duration,
        seed: u64,
    ) -> Result<(Sample, Stall)> {
        let mut rng = Rng::new(seed);
        let blocks = self.size / u64::from(load.block);
        let mut due = Instant::now();
        let deadline = due + length;
        let mut next = || {
            due = (due + interval).max(Instant::now());
            std::thread::sleep(due - Instant::now());
            (due < deadline).then(|| rng.within(0..blocks) * u64::from(load.block))
        };
        self.play(Load { depth: 1, ..load }, &mut next)
    }

    /// Keeps `load.depth` requests in flight until `next` gives no further offset, and waits for
    /// the last answer.
    fn play(
        &mut self,
        load: Load,
        next: &mut dyn FnMut() -> Option<u64>,
    ) -> Result<(Sample, Stall)> {
        let begun = Instant::now();
        let mut flight = Flight::new(load);
        for slot in 0..load.depth {
            flight.issue(slot, next, &mut self.socket)?;
        }
        self.socket.write_all(&std::mem::take(&mut flight.unsent))?;
        let mut received = vec![0; RECEIVE];
        let mut have = 0;
        while flight.in_flight > 0 {
            let count = self.socket.read(&mut received[have..])?;
            ensure!(count > 0, "the server closed the connection");
            have += count;
            let used = flight.take_replies(&received[..have])?;
            received.copy_within(used..have, 0);
            have -= used;
            for slot in std::mem::take(&mut flight.free) {
                flight.issue(slot, next, &mut self.socket)?;
            }
            self.socket.write_all(&flight.unsent)?;
            flight.unsent.clear();
        }
        let stall = flight.stall;
        Ok((flight.sample(begun.elapsed()), stall))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut request = [0; REQUEST_LEN];
        put_request(&mut request, COMMAND_DISCONNECT, 0, 0, 0);
        // A server that is gone already needs no farewell.
        drop(self.socket.write_all(&request));
    }
}

/// The requests under way; a slot each, which is also the request's cookie.
struct Flight {
    load: Load,
    payload: Vec<u8>,
    unsent: Vec<u8>,
    begun: Vec<Instant>,
    free: Vec<u32>,
    in_flight: u32,
    /// The request whose reply is being received, and the data still to come.
    answering: Option<(u32, usize)>,
    latencies: Vec<u32>,
    heard: Instant,
    stall: Stall,
}

impl Flight {
    fn new(load: Load) -> Self {
        let mut payload = vec![0; load.block as usize];
        Rng::new(1).fill(&mut payload);
        Self {
            load,
            payload,
            unsent: Vec::new(),
            begun: vec![Instant::now(); load.depth as usize],
            free: Vec::new(),
            in_flight: 0,
            answering: None,
            latencies: Vec::new(),
            heard: Instant::now(),
            stall: Stall::default(),
        }
    }

    /// Puts the next request, if there is one, into the batch; a large payload goes out at once.
    fn issue(
        &mut self,
        slot: u32,
        next: &mut dyn FnMut() -> Option<u64>,
        socket: &mut UnixStream,
    ) -> Result<()> {
        let Some(offset) = next() else { return Ok(()) };
        let command = match self.load.access {
            Access::Read => COMMAND_READ,
            Access::Write => COMMAND_WRITE,
        };
        let mut request = [0; REQUEST_LEN];
        put_request(&mut request, command, u64::from(slot), offset, self.load.block);
        self.unsent.extend(request);
        self.begun[slot as usize] = Instant::now();
        self.in_flight += 1;
        if self.load.access == Access::Write {
            if self.payload.len() < LARGE {
                self.unsent.extend(&self.payload);
            } else {
                socket.write_all(&self.unsent)?;
                self.unsent.clear();
                socket.write_all(&self.payload)?;
            }
        }
        Ok(())
    }

    /// Counts the replies in `bytes`, and returns how many bytes they took.
    fn take_replies(&mut self, bytes: &[u8]) -> Result<usize> {
        let now = Instant::now();
        let mut at = 0;
        loop {
            if let Some((slot, left)) = self.answering {
                let data = left.min(bytes.len() - at);
                at += data;
                self.answering = (data < left).then_some((slot, left - data));
                if self.answering.is_some() {
                    return Ok(at);
                }
                self.complete(slot, now);
            }
            if bytes.len() - at < REPLY_LEN {
                return Ok(at);
            }
            self.answering = Some(self.read_header(&bytes[at..at + REPLY_LEN])?);
            at += REPLY_LEN;
        }
    }

    /// Which request a reply is for, and how much data follows.
    fn read_header(&self, reply: &[u8]) -> Result<(u32, usize)> {
        ensure!(be32(reply, 0) == REPLY_MAGIC, "no simple reply: {reply:02x?}");
        ensure!(be32(reply, 4) == 0, "the server reports error {}", be32(reply, 4));
        let slot = u32::try_from(be64(reply, 8)).ok().filter(|&slot| slot < self.load.depth);
        let slot = slot.context("the server answers a request never made")?;
        let data = if self.load.access == Access::Read { self.payload.len() } else { 0 };
        Ok((slot, data))
    }

    fn complete(&mut self, slot: u32, now: Instant) {
        let took = now - self.begun[slot as usize];
        self.stall.request = self.stall.request.max(took);
        self.stall.silence = self.stall.silence.max(now - self.heard);
        self.heard = now;
        self.latencies.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        self.free.push(slot);
        self.in_flight -= 1;
    }

    fn sample(mut self, took: Duration) -> Sample {
        let requests = self.latencies.len() as u64;
        let middle = self.latencies.len() / 2;
        let median = if requests == 0 {
            0.0
        } else {
            f64::from(*self.latencies.select_nth_unstable(middle).1) / 1000.0
        };
        Sample {
            requests,
            per_second: requests as f64 / took.as_secs_f64(),
            median_us: median,
            cpu_us: 0.0,
        }
    }
}

/// Reads option replies until the export is open; returns its size.
fn await_export(socket: &mut UnixStream) -> Result<u64> {
    let mut size = None;
    loop {
        let mut head = [0; 20];
        socket.read_exact(&mut head)?;
        ensure!(be64(&head, 0) == OPTION_REPLY_MAGIC, "no option reply");
        let mut body = vec![0; be32(&head, 16).min(1 << 16) as usize];
        socket.read_exact(&mut body)?;
        match be32(&head, 12) {
            REPLY_ACK => return size.context("the server names no size"),
            REPLY_INFO if body.len() >= 10 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                size = Some(be64(&body, 2));
            }
            REPLY_INFO => {}
            refused => bail!("refused with {refused:#x}: {}", String::from_utf8_lossy(&body)),
        }
    }
}

fn put_request(into: &mut [u8; REQUEST_LEN], command: u16, cookie: u64, offset: u64, len: u32) {
    into[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    into[6..8].copy_from_slice(&command.to_be_bytes());
    into[8..16].copy_from_slice(&cookie.to_be_bytes());
    into[16..24].copy_from_slice(&offset.to_be_bytes());
    into[24..].copy_from_slice(&len.to_be_bytes());
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
