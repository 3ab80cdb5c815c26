//! Many threads on one image; and requests that are resolved.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::common::{Folder, contents, same};
use block_io::{BlockDevice, Intent, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange};
use disk_image::qcow2::{CreateOptions, Image};
use std::sync::Arc;
use testkit::rng::Rng;

const PART: u64 = 512 << 10;
const THREADS: u64 = 4;

/// Writes a range as an export would: where it resolves, straight to the file.
fn write(image: &Image, bytes: &[u8], at: u64, resolved: &AtomicU64) {
    let range = ByteRange::new(ByteOffset::new(at), ByteCount::of(bytes));
    let mut places = Vec::new();
    let resolver = image.resolver().expect("an image resolves");
    if let Some(_lease) = resolver.resolve(Intent::Write, range, &mut places) {
        let mut rest = bytes;
        for place in &places {
            let (now, later) = rest.split_at(place.len.as_usize());
            place.file.expect("a place").write_at(now, place.at).expect("written");
            rest = later;
        }
        resolved.fetch_add(1, Ordering::Relaxed);
        return;
    }
    image.write_at(bytes, range.start).expect("written");
}

fn read(image: &Image, buffer: &mut [u8], at: u64) {
    let range = ByteRange::new(ByteOffset::new(at), ByteCount::of(buffer));
    let mut places = Vec::new();
    let resolver = image.resolver().expect("an image resolves");
    let Some(_lease) = resolver.resolve(Intent::Read, range, &mut places) else {
        return image.read_at(buffer, range.start).expect("read");
    };
    let mut done = 0;
    for place in &places {
        let part = &mut buffer[done..done + place.len.as_usize()];
        match place.file {
            Some(file) => file.read_at(part, place.at).expect("read"),
            None => part.fill(0),
        }
        done += place.len.as_usize();
    }
    assert_eq!(done, buffer.len());
}

/// Each thread has a part of the disk of its own, whose bounds lie inside clusters.
fn work(image: &Image, thread: u64, stop: &AtomicBool, resolved: &AtomicU64) -> Vec<u8> {
    let mut rng = Rng::new(thread);
    let base = thread * PART + 512 * thread;
    let len = PART - 512 * THREADS;
    let mut held = vec![0; len as usize];
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds < 300 {
        rounds += 1;
        let start = rng.within(0..len);
        let count = rng.within(1..100_000).min(len - start) as usize;
        let start = start as usize;
        match rng.within(0..10) {
            0 => {
                let range = ByteRange::new(
                    ByteOffset::new(base + start as u64),
                    ByteCount::new(count as u64),
                );
                let may_unmap = rng.chance(1, 2);
                image.zero(range, ZeroMode { may_unmap, only_if_fast: false }).expect("zeroed");
                held[start..start + count].fill(0);
            }
            1 => image.flush().expect("flushed"),
            2..5 => {
                let mut buffer = vec![1; count];
                read(image, &mut buffer, base + start as u64);
                same(&buffer, &held[start..start + count]);
            }
            _ => {
                let byte = rng.bits() as u8;
                held[start..start + count].fill(byte);
                write(image, &held[start..start + count], base + start as u64, resolved);
            }
        }
    }
    held
}

fn run(folder: &Folder, name: &str, options: &CreateOptions) {
    let image: Arc<Image> = folder.create(name, options);
    let (stop, resolved) = (AtomicBool::new(false), AtomicU64::new(0));
    let held: Vec<_> = std::thread::scope(|scope| {
        let (image, stop, resolved) = (&*image, &stop, &resolved);
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(image, thread, stop, resolved)))
            .collect();
        for round in 0..10 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            image.create_snapshot(&format!("s{round}"), SystemTime::now()).expect("taken");
            if round > 2 {
                image.delete_snapshot(&format!("s{}", round - 3)).expect("deleted");
            }
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    let compare = |image: &Image| {
        for (thread, held) in (0..).zip(&held) {
            let mut buffer = vec![1; held.len()];
            let at = ByteOffset::new(thread * PART + 512 * thread);
            image.read_at(&mut buffer, at).expect("read");
            same(&buffer, held);
        }
    };
    compare(&image);
    assert!(resolved.load(Ordering::Relaxed) > 0, "nothing resolved");
    image.close().expect("closed");
    drop(image);
    folder.check(name);
    compare(&folder.open(name));
}

#[test]
fn threads_do_not_get_in_each_others_way() {
    let folder = Folder::new();
    let plain = CreateOptions::new(ByteCount::new(THREADS * PART));
    run(&folder, "a.qcow2", &plain);
    run(&folder, "b.qcow2", &CreateOptions { extended_l2: true, ..plain.clone() });
    run(&folder, "c.qcow2", &CreateOptions { cluster_size: ByteCount::new(4096), ..plain });
}

#[test]
fn what_resolves_and_what_does_not() {
    let folder = Folder::new();
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(1 << 20)));
    let find = |intent, at: u64, len: u64| {
        let mut places = Vec::new();
        let range = ByteRange::new(ByteOffset::new(at), ByteCount::new(len));
        let lease = image.resolver().expect("resolves").resolve(intent, range, &mut places);
        lease.map(|_| places.iter().map(|place| (place.file.is_some(), place.len.get())).collect())
    };
    let nothing: Option<Vec<(bool, u64)>> = None;
    assert_eq!(find(Intent::Read, 0, 4096), nothing, "nothing is loaded");
    image.write_at(&[1; 200_000], ByteOffset::new(65_536)).expect("written");
    assert_eq!(find(Intent::Read, 65_536, 100_000), Some(vec![(true, 100_000)]));
    assert_eq!(find(Intent::Read, 60_000, 10_000), Some(vec![(false, 5536), (true, 4464)]));
    assert_eq!(find(Intent::Write, 65_536, 512), Some(vec![(true, 512)]));
    assert_eq!(find(Intent::Write, 0, 512), nothing, "absent");
    assert_eq!(find(Intent::Read, 1 << 20, 512), nothing, "past the end");
    image.create_snapshot("s", SystemTime::now()).expect("taken");
    assert_eq!(find(Intent::Write, 65_536, 512), nothing, "shared");
    assert_eq!(find(Intent::Read, 65_536, 512), Some(vec![(true, 512)]));
    image.delete_snapshot("s").expect("deleted");
    assert_eq!(find(Intent::Write, 65_536, 512), Some(vec![(true, 512)]));
    same(&contents(&*image)[65_536..265_536], &[1; 200_000]);
}
