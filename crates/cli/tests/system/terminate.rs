//! SIGTERM while clients are in the middle of something.

use std::io::Read;
use std::time::Instant;

use crate::lab::{KIB, Lab, MIB};
use crate::raw::{FLUSH, Raw, Reply, WRITE, request};

const CLIENTS: u64 = 4;

/// Requests of each client: so many that none has to wait in the socket for the server to read it.
const REQUESTS: u64 = 40;

const PIECE: usize = 4096;

/// The error of a request that came too late.
const ESHUTDOWN: u32 = 108;

/// Where a client's request writes: the first bytes of a block that nothing was written to yet.
fn place(client: u64, index: u64) -> u64 {
    (client * REQUESTS + index) * 64 * KIB
}

fn piece(client: u64, index: u64) -> Vec<u8> {
    vec![(1 + client * REQUESTS + index) as u8; PIECE]
}

#[test]
fn what_is_in_flight_is_answered_and_kept() {
    let lab = Lab::new(&["db"], "64M");
    for _ in 0..5 {
        let server = lab.serve("");
        let socket = lab.path("lab/nbd.sock");
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| Raw::open(&socket, "db")).collect();
        for (client, raw) in (0..).zip(&mut clients) {
            let mut bytes = Vec::new();
            for index in 0..REQUESTS {
                let place = place(client, index);
                bytes.extend(request(WRITE, index, place, PIECE as u32, &piece(client, index)));
            }
            bytes.extend(request(FLUSH, REQUESTS, 0, 0, &[]));
            raw.send(&bytes);
        }
        let mut replies = vec![clients[0].replies(1)];
        replies.resize(CLIENTS as usize, Vec::new());
        let begun = Instant::now();
        server.terminate();
        for (raw, replies) in clients.iter_mut().zip(&mut replies) {
            let more = raw.replies((REQUESTS + 1) as usize - replies.len());
            replies.extend(more);
            assert_eq!(raw.stream.read(&mut [0]).unwrap_or(0), 0, "something after the last reply");
        }
        assert!(server.wait().success());
        println!("ended after {:?}", begun.elapsed());
        lab.assert_sound();
        look_at(&lab, &replies);
        lab.ok("volume discard lab/db");
    }
}

/// Every request was answered once, and what was answered well is there.
fn look_at(lab: &Lab, replies: &[Vec<Reply>]) {
    lab.ok("volume export lab/db out.img --force");
    let content = std::fs::read(lab.path("out.img")).unwrap();
    assert_eq!(content.len(), 64 * MIB as usize);
    for (client, replies) in (0..).zip(replies) {
        let mut marks: Vec<_> = replies.iter().map(|reply| reply.cookie).collect();
        marks.sort_unstable();
        assert_eq!(marks, (0..=REQUESTS).collect::<Vec<_>>(), "client {client}");
        for reply in replies {
            assert!([0, ESHUTDOWN].contains(&reply.error), "client {client}: {reply:?}");
            if reply.error == 0 && reply.cookie < REQUESTS {
                let at = place(client, reply.cookie) as usize;
                let written = piece(client, reply.cookie);
                assert!(
                    content[at..at + PIECE] == written,
                    "{reply:?} of client {client} was lost"
                );
            }
        }
    }
}
