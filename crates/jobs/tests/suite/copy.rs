//! Copies between devices: equal contents, whatever the extents; and every way to end early.

use std::sync::Arc;
use std::time::Duration;

use block_io::{
    BlockDevice, CacheMode, FaultCalls, FaultPlan, FaultyDevice, FileOptions, HostFile,
    MemoryDevice,
};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use jobs::{CopyJob, CopyOptions, CopyReport, TargetContent};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

const MIB: u64 = 1 << 20;

fn memory(name: &str, bytes: Vec<u8>) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::from_bytes(name, bytes))
}

/// Runs of data between zeros.
fn content(size: usize, runs: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for &(at, length, value) in runs {
        let start = at % size;
        let end = size.min(start + length);
        bytes[start..end].fill(value);
    }
    bytes
}

fn small_pieces(target: TargetContent) -> CopyOptions {
    CopyOptions { requests: 3, piece: ByteCount::new(16 << 10), ..CopyOptions::new(target) }
}

fn bytes_in(report: CopyReport) -> u64 {
    report.copied.get() + report.cleared.get() + report.skipped.get()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the source's extents and the target's old content: the target reads like the
    /// source, and what it holds behind the source's end stays.
    #[test]
    fn target_reads_like_the_source(
        size in 1usize..300_000,
        more in 0usize..10_000,
        runs in vec((any::<usize>(), 1usize..40_000, any::<u8>()), 0..20),
        find_zeros in any::<bool>(),
        fresh in any::<bool>(),
    ) {
        let bytes = content(size, &runs);
        let source = memory("source", bytes.clone());
        let old = if fresh { 0 } else { 0xee };
        let target = memory("target", vec![old; size + more]);
        let known = if fresh { TargetContent::Zeros } else { TargetContent::Unknown };
        let options = CopyOptions { find_zeros, ..small_pieces(known) };
        let job = CopyJob::new(source, Arc::clone(&target) as _, options).unwrap();
        let monitor = job.monitor();
        let report = job.run().unwrap();
        let found = target.to_bytes();
        prop_assert!(found[..size] == bytes);
        prop_assert!(found[size..].iter().all(|&byte| byte == old));
        prop_assert_eq!(bytes_in(report), size as u64);
        prop_assert_eq!(monitor.done().get(), size as u64);
        if fresh {
            prop_assert_eq!(report.cleared.get(), 0);
        }
    }
}

#[test]
fn zeros_in_data_take_no_space_in_a_fresh_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    // Data as far as the file system knows, but only its middle is not zeros.
    let mut bytes = vec![0; 4 << 20];
    bytes[2 << 20..(2 << 20) + 8192].fill(7);
    std::fs::write(folder.path().join("source"), &bytes).unwrap();
    let source = Arc::new(HostFile::open(&folder.path().join("source"), options).unwrap());
    let path = folder.path().join("target");
    let target = Arc::new(HostFile::create(&path, source.size(), CacheMode::Cached).unwrap());
    let job = CopyJob::new(source, target, CopyOptions::new(TargetContent::Zeros)).unwrap();
    let report = job.run().unwrap();
    assert_eq!(report.copied.get(), 8192);
    assert_eq!(report.skipped.get(), (4 << 20) - 8192);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// A target that takes whole sectors only gets the last one padded with zeros, not with what the
/// buffer held before.
#[test]
fn an_odd_end_is_padded() {
    const SIZE: usize = 3 * 16384 + 1000;
    // Beside the build, for the file system of temporary files may be memory without O_DIRECT.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("target");
    std::fs::write(&path, vec![0xee; 65536]).unwrap();
    let options = FileOptions { cache: CacheMode::Direct, read_only: false };
    let target = HostFile::open(&path, options).unwrap();
    let minimum = target.limits().minimum.get() as usize;
    assert!(minimum >= 512, "the file system has no O_DIRECT");
    let source = memory("source", vec![1; SIZE]);
    let options = CopyOptions { requests: 1, ..small_pieces(TargetContent::Unknown) };
    CopyJob::new(source, Arc::new(target), options).unwrap().run().unwrap();
    let found = std::fs::read(&path).unwrap();
    let padded = SIZE.next_multiple_of(minimum);
    assert!(found[..SIZE].iter().all(|&byte| byte == 1));
    assert!(found[SIZE..padded].iter().all(|&byte| byte == 0));
    assert!(found[padded..].iter().all(|&byte| byte == 0xee));
}

/// Done means durable: a copy ends with a flush, and fails if that fails.
#[test]
fn a_copy_ends_with_a_flush() {
    let flushes = FaultCalls { flushes: true, ..FaultCalls::default() };
    let inner = memory("target", vec![0; 4096]);
    let target = FaultyDevice::new(inner, failing(flushes, 1));
    let source = memory("source", vec![1; 4096]);
    let options = small_pieces(TargetContent::Zeros);
    let job = CopyJob::new(source, Arc::clone(&target) as _, options).unwrap();
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::OutOfSpace);
    assert_eq!(target.counted(), 1);
}

fn failing(calls: FaultCalls, fail_at: u64) -> FaultPlan {
    FaultPlan { fail_at, calls, kind: ErrorKind::OutOfSpace, sticky: false }
}

/// Every call of the target fails once; the job always says so, and a second run mends it all.
#[test]
fn every_failure_of_the_target_ends_the_job_and_it_can_be_run_again() {
    let bytes = content(200_000, &[(5000, 60_000, 1), (100_000, 9000, 2), (150_000, 50_000, 3)]);
    let source = memory("source", bytes.clone());
    let mut calls = 0;
    for fail_at in 1.. {
        let inner = memory("target", vec![0xee; bytes.len()]);
        let plan = failing(FaultCalls::CHANGES, fail_at);
        let target = FaultyDevice::new(Arc::clone(&inner) as _, plan);
        let job = |target| {
            let options = small_pieces(TargetContent::Unknown);
            CopyJob::new(Arc::clone(&source) as _, target, options).unwrap()
        };
        match job(Arc::clone(&target) as Arc<dyn BlockDevice>).run() {
            Ok(_) => break,
            Err(error) => {
                calls = fail_at;
                assert_eq!(error.kind(), ErrorKind::OutOfSpace);
                assert!(error.to_string().contains("failed as planned"), "{error}");
            }
        }
        target.disarm();
        job(target).run().unwrap();
        assert!(inner.to_bytes() == bytes);
    }
    assert!(calls > 10, "only {calls} calls failed");
}

#[test]
fn a_failed_read_tells_its_place() {
    let inner = memory("source", vec![1; 100_000]);
    let reads = FaultCalls { reads: true, ..FaultCalls::default() };
    let source = FaultyDevice::new(inner, FaultPlan { sticky: true, ..failing(reads, 1) });
    let target = memory("target", vec![0; 100_000]);
    let options = CopyOptions { requests: 1, ..small_pieces(TargetContent::Zeros) };
    let error = CopyJob::new(source, target, options).unwrap().run().unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("copy of source to target: stopped at 16384 bytes at 0x0: "),
        "{text}"
    );
}

#[test]
fn failing_extents_end_the_job() {
    let inner = memory("source", vec![1; 100_000]);
    let extents = FaultCalls { extents: true, ..FaultCalls::default() };
    let source = FaultyDevice::new(inner, failing(extents, 1));
    let target = memory("target", vec![0; 100_000]);
    let options = small_pieces(TargetContent::Zeros);
    let error = CopyJob::new(source, target, options).unwrap().run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
}

#[test]
fn cancelling_ends_the_job_in_the_middle() {
    let size = 64 * MIB as usize;
    let source = memory("source", vec![1; size]);
    let target = memory("target", vec![0; size]);
    let options = CopyOptions {
        requests: 2,
        piece: ByteCount::new(4096),
        ..CopyOptions::new(TargetContent::Zeros)
    };
    let job = CopyJob::new(source, Arc::clone(&target) as _, options).unwrap();
    let monitor = job.monitor();
    let canceller = std::thread::spawn(move || {
        while monitor.done() < ByteCount::new(MIB) {
            std::thread::sleep(Duration::from_micros(50));
        }
        monitor.cancel();
        monitor
    });
    let error = job.run().unwrap_err();
    let monitor = canceller.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(monitor.done() >= ByteCount::new(MIB));
    assert!(monitor.done() < monitor.total());
    // What is counted as done is there: pieces are taken in order.
    let written = target.to_bytes().iter().filter(|&&byte| byte == 1).count();
    assert_eq!(written as u64, monitor.done().get());
}

#[test]
fn a_job_that_is_cancelled_first_touches_nothing() {
    let target = memory("target", vec![0xee; 4096]);
    let options = small_pieces(TargetContent::Unknown);
    let source = memory("source", vec![1; 4096]);
    let job = CopyJob::new(source, Arc::clone(&target) as _, options).unwrap();
    job.monitor().cancel();
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(target.to_bytes().iter().all(|&byte| byte == 0xee));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_written() {
    let refused = |source: u64, target: u64, options| {
        let source = Arc::new(MemoryDevice::new("source", ByteCount::new(source)));
        let target = Arc::new(MemoryDevice::new("target", ByteCount::new(target)));
        CopyJob::new(source, target, options).err().map(|error| error.kind())
    };
    let good = small_pieces(TargetContent::Zeros);
    assert_eq!(refused(100, 99, good), Some(ErrorKind::OutOfRange));
    assert_eq!(refused(100, 100, good), None);
    let none = CopyOptions { requests: 0, ..good };
    assert_eq!(refused(100, 100, none), Some(ErrorKind::Invalid));
    let odd = CopyOptions { piece: ByteCount::new(5000), ..good };
    assert_eq!(refused(100, 100, odd), Some(ErrorKind::Invalid));
}

#[test]
fn an_empty_source_is_copied() {
    let source = Arc::new(MemoryDevice::new("source", ByteCount::ZERO));
    let target = memory("target", vec![0xee; 10]);
    let options = small_pieces(TargetContent::Unknown);
    let report = CopyJob::new(source, Arc::clone(&target) as _, options).unwrap().run().unwrap();
    assert_eq!(report, CopyReport::default());
    assert_eq!(target.to_bytes(), [0xee; 10]);
}

/// The thin side of the bargain: zeros of the source are given back in a target that held data.
#[test]
fn holes_are_made_in_an_old_target() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    std::fs::write(&path, vec![0xee; 4 << 20]).unwrap();
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    let target = Arc::new(HostFile::open(&path, options).unwrap());
    let source = Arc::new(MemoryDevice::new("source", ByteCount::new(4 << 20)));
    source.write_at(&[5; 4096], ByteOffset::new(MIB)).unwrap();
    let options = CopyOptions::new(TargetContent::Unknown);
    CopyJob::new(Arc::clone(&source) as _, Arc::clone(&target) as _, options)
        .unwrap()
        .run()
        .unwrap();
    assert!(std::fs::read(&path).unwrap() == source.to_bytes());
    let mut data = 0;
    let whole = ByteRange::new(ByteOffset::ZERO, target.size());
    let mut each = |extent: block_types::Extent| {
        if !extent.state.reads_zero() {
            data += extent.range.len.get();
        }
        std::ops::ControlFlow::Continue(())
    };
    target.extents(whole, &mut each).unwrap();
    assert_eq!(data, 4096);
}
