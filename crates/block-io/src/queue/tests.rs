//! The same tests for both backends.

use std::collections::HashMap;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use block_types::{ByteOffset, ErrorKind};

use super::{Completion, Interest, IoQueue, QueueBackend, QueueChoice, Segment, choice_of};
use crate::scratch::{file, folder, pattern};
use crate::{AlignedBuf, BlockDevice, CacheMode, Event, FileOptions, HostFile};

/// Runs a test over both backends; a system without io_uring fails it.
fn over_both(test: impl Fn(IoQueue)) {
    for (choice, backend) in
        [(QueueChoice::Uring, QueueBackend::Uring), (QueueChoice::Blocking, QueueBackend::Blocking)]
    {
        let queue = IoQueue::new(choice, 8).unwrap();
        assert_eq!(queue.backend(), backend);
        test(queue);
    }
}

/// Waits for the next completion.
fn take(queue: &mut IoQueue) -> Completion {
    loop {
        if let Some(completion) = queue.next() {
            return completion;
        }
        assert!(queue.in_flight() > 0, "nothing is coming");
        queue.submit_and_wait().unwrap();
    }
}

fn segment(file: &HostFile, at: u64, part: std::ops::Range<usize>) -> Segment<'_> {
    Segment { file, at: ByteOffset::new(at), part }
}

fn buffer_of(bytes: &[u8]) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer
}

fn contents(file: &HostFile) -> Vec<u8> {
    let mut bytes = vec![0; file.size().as_usize()];
    file.read_at(&mut bytes, ByteOffset::ZERO).unwrap();
    bytes
}

#[test]
fn segments_of_several_files_are_one_operation() {
    let folder = folder();
    let direct = file(folder.path(), "direct", 65536, CacheMode::Direct);
    let cached = file(folder.path(), "cached", 65536, CacheMode::Cached);
    over_both(|mut queue| {
        let bytes = pattern(16384, queue.backend() as u8);
        let segments = [
            segment(&direct, 8192, 4096..12288),
            segment(&cached, 100, 0..4096),
            segment(&direct, 32768, 12288..12288),
            segment(&direct, 0, 12288..16384),
        ];
        queue.write(1, buffer_of(&bytes), &segments);
        assert_eq!(queue.in_flight(), 1);
        let written = take(&mut queue);
        assert_eq!((written.token, written.result.unwrap()), (1, 16384));
        assert!(queue.next().is_none(), "one completion for all");
        assert!(contents(&direct)[8192..16384] == bytes[4096..12288]);
        assert!(contents(&direct)[..4096] == bytes[12288..]);
        assert!(contents(&cached)[100..4196] == bytes[..4096]);
        queue.read(2, AlignedBuf::zeroed(16384), &segments);
        let read = take(&mut queue);
        assert_eq!((read.token, read.result.unwrap()), (2, 16384));
        assert!(read.buffer.unwrap()[..] == bytes[..]);
        assert_eq!(queue.in_flight(), 0);
    });
}

#[test]
fn more_operations_than_the_depth() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 1 << 20, CacheMode::Direct);
    let bytes = pattern(1 << 20, 5);
    disk.write_at(&bytes, ByteOffset::ZERO).unwrap();
    over_both(|mut queue| {
        for token in 0..128 {
            let at = token * 8192;
            let segments = [segment(&disk, at + 4096, 0..4096), segment(&disk, at, 4096..8192)];
            queue.read(token, AlignedBuf::zeroed(8192), &segments);
        }
        assert_eq!(queue.in_flight(), 128);
        queue.submit().unwrap();
        let mut seen = HashMap::new();
        while queue.in_flight() > 0 {
            let completion = take(&mut queue);
            assert_eq!(completion.result.unwrap(), 8192);
            let at = completion.token as usize * 8192;
            let buffer = completion.buffer.unwrap();
            assert!(buffer[..4096] == bytes[at + 4096..at + 8192]);
            assert!(buffer[4096..] == bytes[at..at + 4096]);
            assert!(seen.insert(completion.token, ()).is_none());
        }
        assert_eq!(seen.len(), 128);
    });
}

#[test]
fn the_end_of_a_file_that_was_cut_is_an_error_and_the_buffer_comes_back() {
    let folder = folder();
    over_both(|mut queue| {
        let name = format!("{:?}", queue.backend());
        let disk = file(folder.path(), &name, 65536, CacheMode::Cached);
        let other = std::fs::OpenOptions::new().write(true).open(folder.path().join(name));
        other.unwrap().set_len(6000).unwrap();
        let segments = [segment(&disk, 4096, 0..4096), segment(&disk, 0, 4096..8192)];
        queue.read(1, AlignedBuf::zeroed(8192), &segments);
        let completion = take(&mut queue);
        assert_eq!(completion.result.unwrap_err().kind(), IoErrorKind::UnexpectedEof);
        assert_eq!(completion.buffer.unwrap().len(), 8192);
        assert_eq!(queue.in_flight(), 0);
    });
}

#[test]
fn segments_that_do_not_fit_are_refused_before_any_is_done() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 8192, CacheMode::Cached);
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    let read_only = HostFile::open(&folder.path().join("disk"), options).unwrap();
    over_both(|mut queue| {
        let good = segment(&disk, 0, 0..10);
        for bad in [
            segment(&disk, 8190, 0..10),
            segment(&disk, u64::MAX, 0..10),
            segment(&disk, 0, 4090..4097),
            segment(&read_only, 0, 0..10),
        ] {
            queue.write(7, buffer_of(&[1; 4096]), &[good.clone(), bad]);
            let completion = take(&mut queue);
            assert_eq!(completion.token, 7);
            assert!(completion.result.is_err());
            assert!(completion.buffer.is_some());
        }
        queue.read(8, AlignedBuf::zeroed(10), &[]);
        assert_eq!(take(&mut queue).result.unwrap(), 0);
        assert!(contents(&disk).iter().all(|&byte| byte == 0));
        assert_eq!(disk.size().get(), 8192);
    });
}

/// ext4 would take such a request, and move it through the page cache.
#[test]
fn segments_that_are_not_aligned_are_refused_for_direct_files() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 65536, CacheMode::Direct);
    over_both(|mut queue| {
        for bad in [
            segment(&disk, 100, 4096..8192),
            segment(&disk, 4096, 4096..4200),
            segment(&disk, 4096, 100..4196),
        ] {
            queue.read(1, AlignedBuf::zeroed(8192), &[segment(&disk, 0, 0..4096), bad]);
            let completion = take(&mut queue);
            assert_eq!(completion.result.unwrap_err().kind(), IoErrorKind::InvalidInput);
            assert!(queue.next().is_none());
        }
    });
}

#[test]
fn what_the_system_says_comes_back_once_with_the_buffer() {
    over_both(|mut queue| {
        let folder = folder();
        let disk = file(folder.path(), "disk", 65536, CacheMode::Cached);
        queue.recv(1, disk.as_fd(), AlignedBuf::zeroed(4096), 0..4096);
        let completion = take(&mut queue);
        assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert!(completion.buffer.is_some());
        assert_eq!(queue.in_flight(), 0);
    });
}

#[test]
fn files_stay_open_until_their_operations_complete() {
    let folder = folder();
    over_both(|mut queue| {
        let name = format!("{:?}", queue.backend());
        let disk = file(folder.path(), &name, 4096, CacheMode::Cached);
        queue.write(1, buffer_of(&[9; 4096]), &[segment(&disk, 0, 0..4096)]);
        drop(disk);
        assert_eq!(take(&mut queue).result.unwrap(), 4096);
        assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), [9; 4096]);
    });
}

#[test]
fn receives_what_is_there_and_the_end() {
    for nonblocking in [false, true] {
        over_both(|mut queue| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(nonblocking).unwrap();
            queue.recv(1, ours.as_fd(), AlignedBuf::zeroed(4096), 100..200);
            queue.submit().unwrap();
            assert!(queue.next().is_none(), "nothing was sent yet");
            let sender = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                theirs.write_all(b"hello").unwrap();
                theirs
            });
            let completion = take(&mut queue);
            assert_eq!((completion.token, completion.result.unwrap()), (1, 5));
            let buffer = completion.buffer.unwrap();
            assert_eq!(&buffer[100..105], b"hello");
            drop(sender.join().unwrap());
            queue.recv(2, ours.as_fd(), buffer, 0..4096);
            assert_eq!(take(&mut queue).result.unwrap(), 0);
            queue.recv(3, ours.as_fd(), AlignedBuf::zeroed(10), 5..5);
            assert!(take(&mut queue).result.is_err(), "no room is not an end");
        });
    }
}

#[test]
fn an_event_wakes_a_waiting_queue_each_time() {
    over_both(|mut queue| {
        let event = Arc::new(Event::new().unwrap());
        for round in 0..3 {
            queue.poll(round, event.as_fd(), Interest::Readable);
            queue.submit().unwrap();
            assert!(queue.next().is_none());
            let other = Arc::clone(&event);
            let waker = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                other.notify();
            });
            let completion = take(&mut queue);
            assert_eq!((completion.token, completion.result.unwrap()), (round, 0));
            assert!(completion.buffer.is_none());
            event.clear();
            waker.join().unwrap();
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        queue.poll(9, ours.as_fd(), Interest::Writable);
        assert_eq!(take(&mut queue).token, 9);
    });
}

#[test]
fn file_io_goes_on_beside_a_receive_that_waits() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 65536, CacheMode::Direct);
    over_both(|mut queue| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        queue.recv(1, ours.as_fd(), AlignedBuf::zeroed(4096), 0..4096);
        for token in 2..20 {
            queue.read(token, AlignedBuf::zeroed(4096), &[segment(&disk, 4096, 0..4096)]);
            assert_eq!(take(&mut queue).token, token);
        }
        assert_eq!(queue.in_flight(), 1);
    });
}

#[test]
fn cancelled_receives_and_polls_complete() {
    for nonblocking in [false, true] {
        over_both(|mut queue| {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(nonblocking).unwrap();
            let event = Event::new().unwrap();
            queue.recv(1, ours.as_fd(), AlignedBuf::zeroed(4096), 0..4096);
            queue.poll(2, event.as_fd(), Interest::Readable);
            queue.submit().unwrap();
            assert!(queue.next().is_none());
            queue.cancel(1);
            queue.cancel(77);
            let completion = take(&mut queue);
            assert_eq!(completion.token, 1);
            assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
            assert!(completion.buffer.is_some());
            queue.cancel(2);
            let completion = take(&mut queue);
            assert_eq!(completion.token, 2);
            assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
            // Cancelled before it was ever submitted.
            queue.recv(3, ours.as_fd(), AlignedBuf::zeroed(4096), 0..4096);
            queue.cancel(3);
            assert_eq!(take(&mut queue).token, 3);
            assert_eq!(queue.in_flight(), 0);
            queue.submit_and_wait().unwrap();
        });
    }
}

#[test]
fn dropping_a_queue_waits_for_its_io() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 8 << 20, CacheMode::Direct);
    over_both(|mut queue| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let event = Event::new().unwrap();
        disk.zero(
            block_types::ByteRange::new(ByteOffset::ZERO, disk.size()),
            crate::ZeroMode::default(),
        )
        .unwrap();
        queue.recv(100, ours.as_fd(), AlignedBuf::zeroed(4096), 0..4096);
        queue.poll(101, event.as_fd(), Interest::Readable);
        for token in 0..8 {
            let at = token << 20;
            queue.write(token, buffer_of(&[8; 1 << 20]), &[segment(&disk, at, 0..1 << 20)]);
        }
        queue.submit().unwrap();
        drop(queue);
        assert!(contents(&disk).iter().all(|&byte| byte == 8), "a write was left in flight");
        // Nobody takes bytes from the socket any more.
        theirs.write_all(b"later").unwrap();
        let mut later = [0; 5];
        std::io::Read::read_exact(&mut &ours, &mut later).unwrap();
        assert_eq!(&later, b"later");
    });
}

#[test]
fn the_environment_chooses() {
    let choose = |value: &str| choice_of(Some(value.into()));
    assert_eq!(choice_of(None).unwrap(), QueueChoice::Auto);
    assert_eq!(choose("").unwrap(), QueueChoice::Auto);
    assert_eq!(choose("uring").unwrap(), QueueChoice::Uring);
    assert_eq!(choose("blocking").unwrap(), QueueChoice::Blocking);
    let error = choose("fast").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("FIRN_IO"), "{error}");
}
