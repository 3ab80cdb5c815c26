//! What only the ring does: transfers that come short, and answers that outrun the ring.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use block_types::ByteOffset;

use super::UringQueue;
use super::slot::{Progress, Slot, Work};
use crate::queue::{Direction, Interest, Piece};
use crate::scratch::{file, folder, pattern};
use crate::{AlignedBuf, BlockDevice, CacheMode, HostFile};

fn piece(file: &HostFile, at: u64, part: std::ops::Range<usize>) -> Piece {
    Piece { fd: Arc::clone(&file.fd), at, part }
}

/// Takes completions until nothing is in flight: their tokens and bytes.
fn drain(queue: &mut UringQueue) -> Vec<(u64, usize, Option<AlignedBuf>)> {
    let mut all = Vec::new();
    while queue.in_flight() > 0 {
        queue.submit_and_wait().unwrap();
        while let Some(completion) = queue.next() {
            all.push((completion.token, completion.result.unwrap(), completion.buffer));
        }
    }
    all
}

#[test]
fn short_transfers_are_continued_and_count_once() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 1 << 20, CacheMode::Direct);
    let bytes = pattern(300_000 / 512 * 512, 6);
    let mut queue = UringQueue::new(4).unwrap();
    queue.longest = 4096;
    let mut buffer = AlignedBuf::zeroed(bytes.len());
    buffer.copy_from_slice(&bytes);
    let pieces = || {
        let halves = [piece(&disk, 512, 0..102_400), piece(&disk, 204_800, 102_400..299_520)];
        halves.into_iter()
    };
    assert_eq!(bytes.len(), 299_520);
    queue.transfer(Direction::Write, 1, buffer, pieces());
    let written = drain(&mut queue);
    assert_eq!((written.len(), written[0].1), (1, 299_520));
    let mut back = vec![0; 1 << 20];
    disk.read_at(&mut back, ByteOffset::ZERO).unwrap();
    assert!(back[512..102_912] == bytes[..102_400]);
    assert!(back[204_800..401_920] == bytes[102_400..]);
    queue.transfer(Direction::Read, 2, AlignedBuf::zeroed(bytes.len()), pieces());
    let read = drain(&mut queue);
    assert_eq!((read.len(), read[0].1), (1, 299_520));
    assert!(read[0].2.as_ref().unwrap()[..] == bytes[..]);
}

/// The system keeps answers for which the ring has no room and hands them over later; none is lost.
#[test]
fn answers_that_outrun_the_ring_are_not_lost() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 65536, CacheMode::Cached);
    disk.write_at(&[1; 65536], ByteOffset::ZERO).unwrap();
    let mut queue = UringQueue::new(2).unwrap();
    for token in 0..200 {
        let pieces = (0..16).map(|n| piece(&disk, n * 4096, 0..4096));
        queue.transfer(Direction::Read, token, AlignedBuf::zeroed(4096), pieces);
    }
    let mut tokens: Vec<_> = drain(&mut queue).iter().map(|done| (done.0, done.1)).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..200).map(|token| (token, 65536)).collect::<Vec<_>>());
    assert_eq!(queue.slots.len(), queue.free.len());
}

#[test]
fn slots_are_used_again() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut queue = UringQueue::new(4).unwrap();
    for token in 0..50 {
        queue.poll(token, ours.as_fd(), Interest::Writable);
        assert_eq!(drain(&mut queue)[0].0, token);
    }
    assert_eq!(queue.slots.len(), 1);
}

/// A transfer that is interrupted or put off is tried again from where it was; a receive that is
/// cancelled meanwhile is not, or dropping the queue would wait for it for ever.
#[test]
fn answers_that_ask_to_try_again() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 65536, CacheMode::Cached);
    let mut slot = Slot::vacant();
    slot.work = Work::Transfer(Direction::Read);
    slot.pieces = vec![piece(&disk, 0, 0..100)];
    assert!(matches!(slot.progress(0, -libc::EINTR), Progress::Again));
    assert!(matches!(slot.progress(0, 40), Progress::Again));
    assert!(matches!(slot.progress(0, -libc::EAGAIN), Progress::Again));
    assert_eq!((slot.pieces[0].at, slot.pieces[0].part.clone()), (40, 40..100));
    assert!(matches!(slot.progress(0, 60), Progress::Done(Ok(0))));

    slot.work = Work::Recv(0, 0..10);
    assert!(matches!(slot.progress(0, -libc::EAGAIN), Progress::Again));
    assert_eq!(slot.work, Work::RecvPoll(0, 0..10));
    assert!(matches!(slot.progress(0, i32::from(libc::POLLIN)), Progress::Again));
    assert_eq!(slot.work, Work::Recv(0, 0..10));
    slot.cancelled = true;
    let Progress::Done(Err(error)) = slot.progress(0, -libc::EINTR) else {
        panic!("a cancelled receive is tried again");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
}
