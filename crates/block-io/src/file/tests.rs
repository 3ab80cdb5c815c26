//! Host files: opening, alignment, space, and a model over all of it.

use std::ops::ControlFlow;
use std::path::Path;

use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Extent, ExtentState, Result};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, proptest};
use proptest::prop_oneof;

use super::{CacheMode, FileOptions, HostFile};
use crate::scratch::{file, folder, pattern};
use crate::{AlignedBuf, BlockDevice, Intent, MemoryDevice, Resolve, ZeroMode};

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
}

fn open(path: &Path, cache: CacheMode, read_only: bool) -> Result<HostFile> {
    HostFile::open(path, FileOptions { cache, read_only })
}

fn kind(result: Result<HostFile>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// What a device says of a range, neighbours in one state joined.
fn extents(device: &dyn BlockDevice, within: ByteRange) -> Vec<(u64, u64, ExtentState)> {
    let mut found: Vec<(u64, u64, ExtentState)> = Vec::new();
    let mut each = |extent: Extent| {
        let (start, len) = (extent.range.start.get(), extent.range.len.get());
        match found.last_mut() {
            Some((at, run, state)) if *state == extent.state => {
                assert_eq!(*at + *run, start, "a gap");
                *run += len;
            }
            _ => found.push((start, len, extent.state)),
        }
        ControlFlow::Continue(())
    };
    device.extents(within, &mut each).unwrap();
    found
}

/// Bytes that the file takes on disk.
fn allocated(path: &Path) -> u64 {
    rustix::fs::stat(path).unwrap().st_blocks as u64 * 512
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = folder();
    let missing = open(&folder.path().join("missing"), CacheMode::Direct, false).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.object().ends_with("missing"));
    let directory = open(folder.path(), CacheMode::Cached, true).unwrap_err();
    assert_eq!(directory.kind(), ErrorKind::Unsupported);
    assert!(directory.to_string().contains("is a directory"), "{directory}");
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    // Opening a pipe for reading would wait for a writer.
    assert_eq!(kind(open(&pipe, CacheMode::Cached, true)), ErrorKind::Unsupported);
    assert_eq!(kind(open(Path::new("/dev/null"), CacheMode::Cached, true)), ErrorKind::Unsupported);
}

#[test]
fn create_never_takes_over_a_file() {
    let folder = folder();
    let path = folder.path().join("disk");
    let created = HostFile::create(&path, ByteCount::new(8192), CacheMode::Direct).unwrap();
    assert_eq!(created.size(), ByteCount::new(8192));
    assert_eq!(allocated(&path), 0, "sparse");
    let again = HostFile::create(&path, ByteCount::new(1), CacheMode::Direct);
    assert_eq!(kind(again), ErrorKind::Exists);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    let lost = HostFile::create(&folder.path().join("no/disk"), ByteCount::ZERO, CacheMode::Cached);
    assert_eq!(kind(lost), ErrorKind::NotFound);
}

#[test]
fn a_file_that_cannot_be_created_whole_is_not_left_behind() {
    let folder = folder();
    let path = folder.path().join("huge");
    assert!(HostFile::create(&path, ByteCount::new(u64::MAX >> 1), CacheMode::Cached).is_err());
    assert!(!path.exists());
}

#[test]
fn read_only_files_refuse_every_change() {
    let folder = folder();
    let path = folder.path().join("disk");
    HostFile::create(&path, ByteCount::new(8192), CacheMode::Cached).unwrap();
    let disk = open(&path, CacheMode::Cached, true).unwrap();
    let all = range(0, 8192);
    let refused = [
        disk.write_at(&[1], ByteOffset::ZERO),
        disk.zero(all, ZeroMode::default()),
        disk.discard(all),
        disk.resize(ByteCount::ZERO),
        disk.provision(all),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    let mut places = Vec::new();
    assert!(disk.resolve(Intent::Write, all, &mut places).is_none());
    assert!(disk.resolve(Intent::Read, all, &mut places).is_some());
    disk.flush().unwrap();
}

#[test]
fn direct_files_want_aligned_requests_and_take_unaligned_memory() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 4 << 20, CacheMode::Direct);
    assert_eq!(disk.cache_mode(), CacheMode::Direct, "the build folder has no O_DIRECT");
    let unit = disk.alignment().as_usize();
    assert!(unit >= 512);
    let mut memory = AlignedBuf::zeroed((3 << 20) + 1);
    memory[1..].copy_from_slice(&pattern(3 << 20, 1));
    disk.write_at(&memory[1..], ByteOffset::new(unit as u64)).unwrap();
    let mut back = AlignedBuf::zeroed((3 << 20) + 1);
    disk.read_at(&mut back[1..], ByteOffset::new(unit as u64)).unwrap();
    assert!(memory[1..] == back[1..]);
    for (at, len) in [(1, unit), (0, unit - 1)] {
        let error = disk.write_at(&memory[..len], ByteOffset::new(at)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(disk.resolve(Intent::Read, range(at, len as u64), &mut Vec::new()).is_none());
        let zero = disk.zero(range(at, len as u64), ZeroMode::default()).unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::Invalid);
    }
    assert_eq!(disk.resize(ByteCount::new(1000)).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(disk.read_if_cached(&mut [0; 512], ByteOffset::ZERO).is_none());
}

#[test]
fn a_size_that_direct_requests_cannot_reach_is_cached() {
    let folder = folder();
    let odd = file(folder.path(), "odd", 1000, CacheMode::Direct);
    assert_eq!((odd.cache_mode(), odd.alignment()), (CacheMode::Cached, ByteCount::new(1)));
    odd.write_at(&[5], ByteOffset::new(999)).unwrap();
}

#[test]
fn requests_past_the_end_are_refused_and_a_file_cut_behind_our_back_is_an_error() {
    let folder = folder();
    for cache in [CacheMode::Direct, CacheMode::Cached] {
        let name = format!("{cache:?}");
        let disk = file(folder.path(), &name, 65536, cache);
        let mut buffer = [0; 4096];
        for at in [65536 - 512, u64::MAX - 511] {
            let error = disk.read_at(&mut buffer, ByteOffset::new(at)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange);
        }
        let other = std::fs::OpenOptions::new().write(true).open(folder.path().join(&name));
        other.unwrap().set_len(4096).unwrap();
        let error = disk.read_at(&mut buffer, ByteOffset::new(8192)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("truncated"), "{error}");
    }
}

#[test]
fn provisioning_takes_space_keeps_content_and_survives_punching() {
    let folder = folder();
    let path = folder.path().join("disk");
    let disk = HostFile::create(&path, ByteCount::new(4 << 20), CacheMode::Direct).unwrap();
    let written = pattern(65536, 3);
    disk.write_at(&written, ByteOffset::new(1 << 20)).unwrap();
    disk.provision(range(0, 2 << 20)).unwrap();
    assert!(allocated(&path) >= 2 << 20);
    assert_eq!(disk.size(), ByteCount::new(4 << 20));
    let mut back = vec![0; 65536];
    disk.read_at(&mut back, ByteOffset::new(1 << 20)).unwrap();
    assert!(back == written);
    // What was given back is really asked for again.
    disk.discard(range(0, 1 << 20)).unwrap();
    assert!(allocated(&path) < 2 << 20);
    disk.provision(range(0, 2 << 20)).unwrap();
    assert!(allocated(&path) >= 2 << 20);
    // Likewise behind an end that was moved down and up again.
    disk.resize(ByteCount::ZERO).unwrap();
    disk.resize(ByteCount::new(4 << 20)).unwrap();
    disk.provision(range(0, 2 << 20)).unwrap();
    assert!(allocated(&path) >= 2 << 20);
    assert_eq!(disk.provision(range(0, 5 << 20)).unwrap_err().kind(), ErrorKind::OutOfRange);
}

#[test]
fn zeroing_keeps_or_gives_back_space_as_asked() {
    let folder = folder();
    let path = folder.path().join("disk");
    let disk = HostFile::create(&path, ByteCount::new(1 << 20), CacheMode::Direct).unwrap();
    disk.write_at(&pattern(1 << 20, 9), ByteOffset::ZERO).unwrap();
    disk.zero(range(0, 1 << 19), ZeroMode::default()).unwrap();
    assert!(allocated(&path) >= 1 << 20);
    let unmap = ZeroMode { may_unmap: true, only_if_fast: true };
    disk.zero(range(1 << 19, 1 << 19), unmap).unwrap();
    assert!(allocated(&path) < 1 << 20);
    let mut back = vec![1; 1 << 20];
    disk.read_at(&mut back, ByteOffset::ZERO).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
}

#[test]
fn extents_tell_data_from_holes() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 1 << 20, CacheMode::Cached);
    disk.write_at(&[1; 65536], ByteOffset::new(131_072)).unwrap();
    let holes_around = [
        (1000, 130_072, ExtentState::Hole),
        (131_072, 65536, ExtentState::Data),
        (196_608, (1 << 20) - 196_609, ExtentState::Hole),
    ];
    assert_eq!(extents(&disk, range(1000, (1 << 20) - 1001)), holes_around);
    assert_eq!(extents(&disk, range(140_000, 5)), [(140_000, 5, ExtentState::Data)]);
    assert_eq!(extents(&disk, range(0, 0)), []);
    let mut calls = 0;
    let mut once = |_| {
        calls += 1;
        ControlFlow::Break(())
    };
    disk.extents(range(0, 1 << 20), &mut once).unwrap();
    assert_eq!(calls, 1);
}

#[test]
fn cached_bytes_are_read_without_waiting() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 65536, CacheMode::Cached);
    let bytes = pattern(65536, 4);
    disk.write_at(&bytes, ByteOffset::ZERO).unwrap();
    let mut back = vec![0; 65536];
    let read = disk.read_if_cached(&mut back, ByteOffset::ZERO).unwrap();
    assert!(read > 0 && back[..read] == bytes[..read]);
    assert!(disk.read_if_cached(&mut back, ByteOffset::new(65536)).is_none());
}

#[test]
fn resolves_to_itself() {
    let folder = folder();
    let disk = file(folder.path(), "disk", 65536, CacheMode::Direct);
    let mut places = Vec::new();
    assert!(disk.resolve(Intent::Write, range(4096, 8192), &mut places).is_some());
    assert_eq!(places.len(), 1);
    assert!(std::ptr::eq(places[0].file.unwrap(), &raw const disk));
    assert_eq!((places[0].at, places[0].len), (ByteOffset::new(4096), ByteCount::new(8192)));
    assert!(disk.resolve(Intent::Write, range(61440, 8192), &mut places).is_none());
    assert_eq!(places.len(), 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { at: u64, len: u64, salt: u8 },
    Zero { at: u64, len: u64, mode: ZeroMode },
    Discard { at: u64, len: u64 },
    Provision { at: u64, len: u64 },
    Resize { size: u64 },
    Flush,
}

/// The largest size in the model, in units of the alignment.
const UNITS: u64 = 96;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..UNITS, 0..UNITS / 2);
    let mode = (any::<bool>(), any::<bool>())
        .prop_map(|(may_unmap, only_if_fast)| ZeroMode { may_unmap, only_if_fast });
    let step = prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|((at, len), salt)| Step::Write { at, len, salt }),
        2 => (place(), mode).prop_map(|((at, len), mode)| Step::Zero { at, len, mode }),
        2 => place().prop_map(|(at, len)| Step::Discard { at, len }),
        1 => place().prop_map(|(at, len)| Step::Provision { at, len }),
        1 => (0..=UNITS).prop_map(|size| Step::Resize { size }),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..40)
}

/// Cuts a place to the size of the model, and scales it.
fn fit(at: u64, len: u64, unit: u64, model: &[u8]) -> ByteRange {
    let size = model.len() as u64;
    let at = (at * unit).min(size);
    range(at, (len * unit).min(size - at))
}

fn inside(model: &mut [u8], range: ByteRange) -> &mut [u8] {
    &mut model[range.start.get() as usize..range.end().get() as usize]
}

fn read(device: &dyn BlockDevice, range: ByteRange) -> Vec<u8> {
    let mut bytes = vec![0; range.len.as_usize()];
    device.read_at(&mut bytes, range.start).unwrap();
    bytes
}

/// Takes a step on the device and the model.
fn take(
    device: &dyn BlockDevice,
    host: Option<&HostFile>,
    model: &mut Vec<u8>,
    unit: u64,
    step: Step,
) {
    match step {
        Step::Write { at, len, salt } => {
            let range = fit(at, len, unit, model);
            let bytes = pattern(range.len.as_usize(), salt);
            device.write_at(&bytes, range.start).unwrap();
            inside(model, range).copy_from_slice(&bytes);
        }
        Step::Zero { at, len, mode } => {
            let range = fit(at, len, unit, model);
            match device.zero(range, mode) {
                Ok(()) => inside(model, range).fill(0),
                Err(error) => {
                    assert!(mode.only_if_fast, "{error}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                }
            }
        }
        Step::Discard { at, len } => {
            let range = fit(at, len, unit, model);
            device.discard(range).unwrap();
            let left = read(device, range);
            for (&now, before) in left.iter().zip(inside(model, range)) {
                assert!(now == *before || now == 0);
                *before = now;
            }
        }
        Step::Provision { at, len } => {
            if let Some(host) = host {
                host.provision(fit(at, len, unit, model)).unwrap();
            }
        }
        Step::Resize { size } => {
            device.resize(ByteCount::new(size * unit)).unwrap();
            model.resize((size * unit) as usize, 0);
        }
        Step::Flush => device.flush().unwrap(),
    }
}

/// Takes all steps, and compares size, content and extents after each.
fn run(device: &dyn BlockDevice, host: Option<&HostFile>, unit: u64, steps: Vec<Step>) {
    let mut model = read(device, range(0, device.size().get()));
    for step in steps {
        take(device, host, &mut model, unit, step);
        let all = range(0, model.len() as u64);
        assert_eq!(device.size(), all.len);
        assert!(read(device, all) == model);
        for (at, len, state) in extents(device, all) {
            let bytes = inside(&mut model, range(at, len));
            assert!(!state.reads_zero() || bytes.iter().all(|&byte| byte == 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_device_agrees_with_a_vector(steps in steps()) {
        let folder = folder();
        let memory = MemoryDevice::new("memory", ByteCount::new(5000));
        run(&memory, None, 117, steps.clone());
        let cached = file(folder.path(), "cached", 40_000, CacheMode::Cached);
        run(&cached, Some(&cached), 1009, steps.clone());
        let direct = file(folder.path(), "direct", 65536, CacheMode::Direct);
        let unit = direct.alignment().get();
        run(&direct, Some(&direct), unit, steps);
    }
}
