//! What a crash leaves: all that was flushed, any part of the rest, and nothing else.

use std::collections::HashSet;
use std::sync::Arc;

use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};

use super::{CrashDevice, CrashWorld};
use crate::{BlockDevice, ZeroMode};

const DRAWS: u64 = 300;

fn at(offset: u64) -> ByteOffset {
    ByteOffset::new(offset)
}

fn world(seed: u64) -> (Arc<CrashWorld>, Arc<CrashDevice>, Arc<CrashDevice>) {
    let world = CrashWorld::new(seed);
    let first = world.device("first", vec![0; 2048]);
    let second = world.device("second", vec![0; 1024]);
    (world, first, second)
}

#[test]
fn flushed_writes_survive_and_others_survive_in_any_part() {
    let (world, first, second) = world(1);
    first.write_at(&[1; 512], at(0)).unwrap();
    first.flush().unwrap();
    first.write_at(&[2; 1024], at(512)).unwrap();
    second.write_at(&[3; 512], at(0)).unwrap();
    let mut seen = HashSet::new();
    for draw in 0..DRAWS {
        let images = world.images(draw);
        assert_eq!((images[0].0.as_str(), images[1].0.as_str()), ("first", "second"));
        let (first, second) = (&images[0].1, &images[1].1);
        assert_eq!(first[..512], [1; 512], "flushed");
        assert_eq!(first[1536..], [0; 512], "never written");
        for sector in first.chunks(512).chain(second.chunks(512)) {
            assert!(sector.iter().all(|&byte| byte == sector[0]), "torn inside a sector");
        }
        seen.insert((first[512], first[1024], second[0]));
    }
    assert_eq!(seen.len(), 8, "every combination of three sectors: {seen:?}");
}

#[test]
fn a_later_write_may_survive_an_earlier_one() {
    let (world, first, _) = world(2);
    first.write_at(&[1; 512], at(0)).unwrap();
    first.write_at(&[2; 512], at(512)).unwrap();
    first.write_at(&[3; 512], at(0)).unwrap();
    let outcomes: HashSet<_> =
        (0..DRAWS).map(|draw| world.images(draw)[0].1.clone()).map(|i| (i[0], i[512])).collect();
    let all = [0, 1, 3].into_iter().flat_map(|a| [(a, 0), (a, 2)]).collect();
    assert_eq!(outcomes, all);
}

#[test]
fn flushing_one_device_does_not_flush_the_other() {
    let (world, first, second) = world(3);
    first.write_at(&[1; 512], at(0)).unwrap();
    second.write_at(&[2; 512], at(0)).unwrap();
    second.flush().unwrap();
    let images: Vec<_> = (0..DRAWS).map(|draw| world.images(draw)).collect();
    assert!(images.iter().all(|images| images[1].1[0] == 2));
    assert!(images.iter().any(|images| images[0].1[0] == 0));
}

#[test]
fn the_power_fails_at_the_chosen_operation_for_all_devices() {
    let (world, first, second) = world(4);
    world.crash_at(3);
    first.write_at(&[1; 512], at(0)).unwrap();
    second.flush().unwrap();
    assert!(!world.crashed());
    let error = first.write_at(&[2; 1024], at(1024)).unwrap_err();
    assert_eq!((error.kind(), error.problem()), (ErrorKind::Stopped, "power lost"));
    assert!(world.crashed());
    assert_eq!(second.flush().unwrap_err().kind(), ErrorKind::Stopped);
    assert!(first.read_at(&mut [0], at(0)).is_err());
    assert_eq!(world.ops(), 3);
    // The write during which it failed may be there, in part; the ones refused before are not.
    let torn = (0..DRAWS).any(|draw| {
        let image = &world.images(draw)[0].1;
        image[1024] == 2 && image[1536] == 0
    });
    assert!(torn);
}

#[test]
fn a_flush_that_the_power_failure_hits_makes_nothing_durable() {
    let (world, first, _) = world(5);
    world.crash_at(2);
    first.write_at(&[1; 512], at(0)).unwrap();
    assert!(first.flush().is_err());
    assert!((0..DRAWS).any(|draw| world.images(draw)[0].1[0] == 0));
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let run = |seed| {
        let (world, first, second) = world(seed);
        for round in 0..40u8 {
            first.write_at(&[round; 700], at(u64::from(round) * 31)).unwrap();
            second.discard(ByteRange::new(at(0), ByteCount::new(512))).unwrap();
            second.write_at(&[round; 100], at(3)).unwrap();
        }
        (0..20).map(|draw| world.images(draw)).collect::<Vec<_>>()
    };
    assert_eq!(run(6), run(6));
    assert_ne!(run(6), run(7));
}

#[test]
fn growth_that_is_lost_takes_the_writes_behind_it() {
    let (world, _, second) = world(8);
    second.resize(ByteCount::new(2000)).unwrap();
    second.write_at(&[9; 1000], at(1000)).unwrap();
    let lengths: HashSet<_> = (0..DRAWS)
        .map(|draw| {
            let image = &world.images(draw)[1].1;
            assert!(image.len() == 1024 || image.len() == 2000);
            image.len()
        })
        .collect();
    assert_eq!(lengths.len(), 2);
    second.flush().unwrap();
    assert_eq!(world.after_crash()[1].1[1999], 9);
}

#[test]
fn discards_leave_zeros_or_what_was_there() {
    let (_, first, _) = world(9);
    let range = ByteRange::new(at(0), ByteCount::new(512));
    let mut left = HashSet::new();
    for _ in 0..50 {
        first.write_at(&[7; 512], at(0)).unwrap();
        first.discard(range).unwrap();
        let mut bytes = [1; 512];
        first.read_at(&mut bytes, at(0)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == bytes[0]));
        left.insert(bytes[0]);
        first.zero(range, ZeroMode::default()).unwrap();
    }
    assert_eq!(left, HashSet::from([0, 7]));
}
