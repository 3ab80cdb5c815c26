//! Every n-th I/O fails, space ends at every n-th request, and damaged images are told apart.

use std::sync::Arc;

use crate::vhd::common::{content, memory, open, options};
use crate::vhd::session::{self, Session, fresh};
use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::vhd::{Content, OpenOptions, VhdImage, check};

/// Random work while one call fails, or all from one on. The image either goes on, or stops for
/// good; what is left is sound and holds what was flushed.
fn run(seed: u64, plan: FaultPlan) {
    let (options, parent) = fresh(seed);
    let file = memory("disk", &options);
    let faulty = FaultyDevice::new(file.clone(), plan);
    let mut session = Session::new(seed);
    let about = format!("seed {seed}, {plan:?}");
    if let Ok(image) = session::open(faulty.clone(), parent.clone()) {
        let mut failures = 0;
        for _ in 0..60 {
            failures += u64::from(session.step(&image).is_err());
        }
        let closed = session.close(&image);
        assert!(!plan.sticky || closed.is_err() || failures == 0, "{about}: nobody noticed");
    }
    let report = check(&*file, None).expect("checked");
    let on_its_way = ["and its copy differ", "the footer at the end is lost"];
    let wrong =
        report.errors.iter().find(|error| !on_its_way.iter().any(|way| error.contains(way)));
    assert_eq!(wrong, None, "{about}: {report:#?}");
    let image = session::open(file.clone(), parent).expect("opened");
    session.survive(&image).unwrap_or_else(|problem| panic!("{about}: {problem}"));
    assert!(check(&*file, None).expect("checked").errors.is_empty(), "{about}");
}

#[test]
fn every_nth_change_fails() {
    for seed in 0..4 {
        for fail_at in 1..120 {
            for (kind, sticky) in
                [(ErrorKind::Io, false), (ErrorKind::Io, true), (ErrorKind::OutOfSpace, false)]
            {
                run(seed, FaultPlan { fail_at, calls: FaultCalls::CHANGES, kind, sticky });
            }
        }
    }
}

#[test]
fn every_nth_call_fails() {
    for seed in 0..4 {
        for fail_at in 1..200 {
            let plan =
                FaultPlan { fail_at, calls: FaultCalls::ALL, kind: ErrorKind::Io, sticky: false };
            run(seed, plan);
        }
    }
}

#[test]
fn a_failed_flush_stops_the_image_for_good() {
    let file = memory("disk", &options(Content::Dynamic, 1, 1 << 20, 16 << 10));
    let flushes = FaultCalls { flushes: true, ..FaultCalls::default() };
    let plan = |fail_at| FaultPlan { fail_at, calls: flushes, kind: ErrorKind::Io, sticky: false };
    let faulty = FaultyDevice::new(file, plan(0));
    let image = open(faulty.clone(), None);
    image.write_at(&[7; 512], ByteOffset::ZERO).expect("written");
    faulty.arm(plan(1));
    assert_eq!(image.flush().expect_err("failed").kind(), ErrorKind::Io);
    for error in [
        image.flush().expect_err("stopped"),
        image.write_at(&[8; 512], ByteOffset::ZERO).expect_err("stopped"),
        image.set_hidden(true).expect_err("stopped"),
        image.close().expect_err("stopped"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert!(error.to_string().contains("as planned"), "{error}");
    }
    let mut read = [0; 512];
    image.read_at(&mut read, ByteOffset::ZERO).expect("reads go on");
    assert_eq!(read, [7; 512]);
    assert!(image.limits().read_only);
}

/// A logical volume: it cannot be made longer, and its footer stays at its end.
#[test]
fn a_full_device_answers_and_goes_on_when_it_has_grown() {
    const BLOCK: u64 = 16 << 10;
    let options = options(Content::Dynamic, 1, 10 * BLOCK, BLOCK);
    let size = ByteCount::new(8 * BLOCK);
    let memory = Arc::new(MemoryDevice::new("lv", size));
    let resizes = FaultCalls { resizes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls: resizes, kind: ErrorKind::Unsupported, sticky: true };
    let device = FaultyDevice::new(memory.clone(), plan);
    disk_image::vhd::create(&*device, &options).expect("made");
    let image = open(device.clone(), None);
    let write = |image: &VhdImage, block: u64| {
        image.write_at(&[block as u8 + 1; 512], ByteOffset::new(block * BLOCK))
    };
    let full = (0..10).find(|&block| write(&image, block).is_err()).expect("it is full");
    let error = write(&image, full).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    assert!(error.advice().is_some(), "{error}");
    write(&image, 2).expect("what has a place can be written");
    image.close().expect("closed");
    let end = memory.to_bytes()[size.as_usize() - 512..].to_vec();
    assert_eq!(&end[..8], b"conectix");
    // The volume is made larger: the footer is not at its end any more, and comes there.
    memory.resize(ByteCount::new(14 * BLOCK)).expect("resized");
    let image = open(device, None);
    for block in full..10 {
        write(&image, block).expect("there is room again");
    }
    image.close().expect("closed");
    let report = check(&*memory, None).expect("checked");
    assert!(report.errors.is_empty(), "{report:#?}");
    assert_eq!(&memory.to_bytes()[(14 * BLOCK) as usize - 512..][..8], b"conectix");
    assert_eq!(content(&*image)[(9 * BLOCK) as usize], 10);
}

#[test]
fn files_that_are_none_are_refused_with_their_name() {
    for bytes in [Vec::new(), vec![0; 511], vec![0; 4096], vec![0xff; 10_000]] {
        let file = Arc::new(MemoryDevice::from_bytes("what.vhd", bytes));
        assert!(!disk_image::vhd::probe(&*file).expect("looked at"));
        let error = VhdImage::open(file, None, OpenOptions::default()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("what.vhd"), "{error}");
    }
}
