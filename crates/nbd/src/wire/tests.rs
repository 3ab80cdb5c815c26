//! Golden bytes, written out from the protocol text, and round trips.

use block_types::{ByteCount, ByteOffset, ByteRange};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::{
    Answer, AnswerHead, ClientFlags, ClientOption, Command, CommandFlags, Dialect, Errno,
    ErrorAnswer, ExportAnswer, Greeting, InfoItem, InfoQuery, InfoType, MetaQuery, OptionCode,
    ReplyHead, ReplyType, Request, StatusExtent, TransmissionFlags, data_header, parse_error,
    parse_hole, parse_status, push_ack, push_error_reply, push_hole, push_status, query_lists,
    walk,
};

const DIALECTS: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];

/// The bytes that `text` writes in hexadecimal, with spaces.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn request(command: Command, flags: u16, offset: u64, length: u64) -> Request {
    Request {
        flags: CommandFlags(flags),
        command,
        cookie: 0x0102_0304_0506_0708,
        offset: ByteOffset::new(offset),
        length: ByteCount::new(length),
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
}

fn bytes(push: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    push(&mut out);
    out
}

#[test]
fn handshake_bytes() {
    let greeting = Greeting { no_zeroes: true }.to_bytes();
    assert_eq!(greeting[..], hex("4e42444d41474943 49484156454f5054 0003"));
    assert_eq!(Greeting::parse(&greeting), Some(Greeting { no_zeroes: true }));
    // The old style of negotiation has another second magic.
    assert_eq!(Greeting::parse(&hex("4e42444d41474943 00420281861253 00 0003")), None);
    assert_eq!(ClientFlags { no_zeroes: false }.to_bytes(), [0, 0, 0, 1]);
    assert_eq!(ClientFlags::parse([0, 0, 0, 3]), Some(ClientFlags { no_zeroes: true }));
    for unknown in [[0, 0, 0, 7], [0x80, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 2]] {
        assert_eq!(ClientFlags::parse(unknown), None);
    }
    let answer = ExportAnswer { size: ByteCount::new(0x1000), flags: TransmissionFlags(0x10d) };
    let padded = bytes(|out| answer.push(out, false));
    assert_eq!(padded[..10], hex("0000000000001000 010d"));
    assert_eq!((padded.len(), &padded[10..] == vec![0; 124].as_slice()), (134, true));
    assert_eq!(bytes(|out| answer.push(out, true)).len(), 10);
    assert_eq!(ExportAnswer::parse(&padded), Some(answer));
}

#[test]
fn option_bytes() {
    let go = ClientOption::Go(InfoQuery {
        name: "db".to_owned(),
        wanted: vec![InfoType::BLOCK_SIZE, InfoType::NAME],
    });
    let golden = "49484156454f5054 00000007 0000000c 00000002 6462 0002 0003 0001";
    assert_eq!(bytes(|out| go.push(out)), hex(golden));
    let set = ClientOption::SetMetaContext(MetaQuery {
        name: "a".to_owned(),
        queries: vec!["base:allocation".to_owned()],
    });
    let golden = "49484156454f5054 0000000a 0000001c 00000001 61 00000001 0000000f \
                  626173653a616c6c6f636174696f6e";
    assert_eq!(bytes(|out| set.push(out)), hex(golden));
    let bare = bytes(|out| ClientOption::ExtendedHeaders.push(out));
    assert_eq!(bare, hex("49484156454f5054 0000000b 00000000"));
}

#[test]
fn answer_bytes() {
    let code = OptionCode::GO;
    let size = ByteCount::new(1 << 30);
    let export = Answer::Info(InfoItem::Export { size, flags: TransmissionFlags(0x0d6d) });
    let golden = "0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0d6d";
    assert_eq!(bytes(|out| export.push(out, code)), hex(golden));
    let sizes = InfoItem::BlockSize { minimum: 512, preferred: 4096, maximum: 32 << 20 };
    let golden = "0003e889045565a9 00000007 00000003 0000000e 0003 00000200 00001000 02000000";
    assert_eq!(bytes(|out| Answer::Info(sizes).push(out, code)), hex(golden));
    let refusal = ErrorAnswer { reply: ReplyType::ERR_UNKNOWN, message: "no".to_owned() };
    let golden = "0003e889045565a9 00000007 80000006 00000002 6e6f";
    assert_eq!(bytes(|out| Answer::Error(refusal).push(out, code)), hex(golden));
}

#[test]
fn request_bytes() {
    let write = request(Command::WRITE, 1, 0x2000, 0x200);
    let golden = "25609513 0001 0001 0102030405060708 0000000000002000 00000200";
    assert_eq!(bytes(|out| write.push(out, Dialect::Structured)), hex(golden));
    let zeroes = request(Command::WRITE_ZEROES, 0x12, 0x2000, 1 << 40);
    let golden = "21e41c71 0012 0006 0102030405060708 0000000000002000 0000010000000000";
    assert_eq!(bytes(|out| zeroes.push(out, Dialect::Extended)), hex(golden));
}

#[test]
fn reply_bytes() {
    let read = request(Command::READ, 0, 0x1000, 0x200);
    let span = range(0x1000, 0x200);
    let golden = [
        "67446698 00000000 0102030405060708",
        "668e33ef 0001 0001 0102030405060708 00000208 0000000000001000",
        "6e8a278c 0001 0001 0102030405060708 0000000000001000 0000000000000208 0000000000001000",
    ];
    for (dialect, golden) in DIALECTS.into_iter().zip(golden) {
        assert_eq!(data_header(dialect, &read, span, true)[..], hex(golden));
    }
    let hole = bytes(|out| push_hole(out, Dialect::Structured, &read, span, false));
    let golden = "668e33ef 0000 0002 0102030405060708 0000000c 0000000000001000 00000200";
    assert_eq!(hole, hex(golden));
    assert_eq!(parse_hole(&hole[20..]), Some(span));
    let ack = bytes(|out| push_ack(out, Dialect::Extended, &read));
    let golden = "6e8a278c 0001 0000 0102030405060708 0000000000001000 0000000000000000";
    assert_eq!(ack, hex(golden));
}

#[test]
fn error_bytes() {
    let read = request(Command::READ, 0, 0x1000, 0x200);
    let fail = |dialect| bytes(|out| push_error_reply(out, dialect, &read, Errno::NoSpace, "full"));
    assert_eq!(fail(Dialect::Simple), hex("67446698 0000001c 0102030405060708"));
    let golden = "668e33ef 0001 8001 0102030405060708 0000000a 0000001c 0004 66756c6c";
    let structured = fail(Dialect::Structured);
    assert_eq!(structured, hex(golden));
    assert_eq!(parse_error(&structured[20..]), Some((Errno::NoSpace, "full".to_owned())));
    // A claim of more words than there are.
    assert_eq!(parse_error(&hex("0000001c 0005 66756c6c")), None);
    // Words that are too long are cut between characters.
    let long = "ä".repeat(3000);
    let reply = bytes(|out| push_error_reply(out, Dialect::Structured, &read, Errno::Io, &long));
    let (_, words) = parse_error(&reply[20..]).unwrap();
    assert_eq!(words, "ä".repeat(2048));
}

#[test]
fn status_bytes() {
    let status = request(Command::BLOCK_STATUS, 0, 0, 0x3000);
    let extents = [
        StatusExtent { length: ByteCount::new(0x1000), flags: 0 },
        StatusExtent { length: ByteCount::new(0x2000), flags: 3 },
    ];
    let compact = bytes(|out| push_status(out, Dialect::Structured, &status, 7, &extents, true));
    let golden = "668e33ef 0001 0005 0102030405060708 00000014 \
                  00000007 00001000 00000000 00002000 00000003";
    assert_eq!(compact, hex(golden));
    let wide = bytes(|out| push_status(out, Dialect::Extended, &status, 7, &extents, true));
    let golden = "6e8a278c 0001 0006 0102030405060708 0000000000000000 0000000000000028 \
                  00000007 00000002 0000000000001000 0000000000000000 \
                  0000000000002000 0000000000000003";
    assert_eq!(wide, hex(golden));
    use super::ChunkKind;
    let kinds = [ChunkKind::BLOCK_STATUS, ChunkKind::BLOCK_STATUS_EXT];
    for (kind, payload) in kinds.into_iter().zip([&compact[20..], &wide[32..]]) {
        assert_eq!(parse_status(kind, payload).unwrap(), (7, extents.to_vec()));
        assert!(parse_status(kind, &payload[..payload.len() - 1]).is_err());
        assert!(parse_status(kind, &payload[..8]).is_err(), "no extents at all");
    }
    // A count that does not fit the length.
    let lie = hex("00000007 ffffffff 0000000000001000 0000000000000000");
    assert!(parse_status(ChunkKind::BLOCK_STATUS_EXT, &lie).is_err());
}

#[test]
fn claims_beyond_the_data_are_refused() {
    let cases: [(OptionCode, &str); 9] = [
        (OptionCode::GO, "00000003 6462 0000"),
        (OptionCode::GO, "00000002 6462 ffff 0003"),
        (OptionCode::GO, "00000002 6462 0001 0003 00"),
        (OptionCode::GO, "00000002 ffff 0000"),
        (OptionCode::GO, "00001001 00"),
        (OptionCode::SET_META_CONTEXT, "00000000 ffffffff 00000000"),
        (OptionCode::SET_META_CONTEXT, "00000000 00000001 00000000 00"),
        (OptionCode::LIST, "00"),
        (OptionCode::STRUCTURED_REPLY, "00000000"),
    ];
    for (code, data) in cases {
        let fault = ClientOption::parse(code, &hex(data)).expect_err(data);
        assert_eq!(fault.reply, ReplyType::ERR_INVALID, "{data}");
    }
    let long = vec![b'x'; 4097];
    assert!(ClientOption::parse(OptionCode::EXPORT_NAME, &long).is_err());
    assert!(ClientOption::parse(OptionCode::EXPORT_NAME, &long[1..]).is_ok());
}

#[test]
fn error_numbers() {
    for (code, errno) in [
        (1, Errno::Perm),
        (5, Errno::Io),
        (12, Errno::NoMemory),
        (22, Errno::Invalid),
        (28, Errno::NoSpace),
        (75, Errno::Overflow),
        (95, Errno::NotSupported),
        (108, Errno::Shutdown),
    ] {
        assert_eq!((errno.code(), Errno::from_code(code)), (code, Some(errno)));
    }
    assert_eq!((Errno::from_code(0), Errno::from_code(999)), (None, Some(Errno::Invalid)));
}

#[test]
fn context_queries() {
    for (query, name, listed) in [
        ("base:allocation", "base:allocation", true),
        ("base:", "base:allocation", true),
        ("qemu:dirty-bitmap:", "qemu:dirty-bitmap:daily", true),
        ("qemu:", "qemu:dirty-bitmap:daily", true),
        ("base", "base:allocation", false),
        ("base:alloc", "base:allocation", false),
        ("", "base:allocation", false),
    ] {
        assert_eq!(query_lists(query, name), listed, "{query}");
    }
}

fn dialects() -> impl Strategy<Value = Dialect> {
    prop_oneof![Just(Dialect::Simple), Just(Dialect::Structured), Just(Dialect::Extended)]
}

fn requests() -> impl Strategy<Value = Request> {
    (any::<u16>(), 0..9u16, any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |(flags, command, cookie, offset, length)| Request {
            flags: CommandFlags(flags),
            command: Command(command),
            cookie,
            offset: ByteOffset::new(offset),
            length: ByteCount::new(length.into()),
        },
    )
}

fn options() -> impl Strategy<Value = ClientOption> {
    let info = || {
        (".{0,40}", proptest::collection::vec(any::<u16>(), 0..5)).prop_map(|(name, wanted)| {
            InfoQuery { name, wanted: wanted.into_iter().map(InfoType).collect() }
        })
    };
    let meta = || {
        (".{0,40}", proptest::collection::vec(".{0,20}", 0..4))
            .prop_map(|(name, queries)| MetaQuery { name, queries })
    };
    prop_oneof![
        ".{0,60}".prop_map(ClientOption::ExportName),
        Just(ClientOption::Abort),
        Just(ClientOption::List),
        Just(ClientOption::StartTls),
        Just(ClientOption::StructuredReply),
        Just(ClientOption::ExtendedHeaders),
        info().prop_map(ClientOption::Info),
        info().prop_map(ClientOption::Go),
        meta().prop_map(ClientOption::ListMetaContext),
        meta().prop_map(ClientOption::SetMetaContext),
        (20..u32::MAX).prop_map(|code| ClientOption::Unknown(OptionCode(code))),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        (".{0,40}", ".{0,40}").prop_map(|(name, description)| Answer::Server { name, description }),
        (any::<u64>(), any::<u16>()).prop_map(|(size, flags)| Answer::Info(InfoItem::Export {
            size: ByteCount::new(size),
            flags: TransmissionFlags(flags)
        })),
        ".{0,40}".prop_map(|name| Answer::Info(InfoItem::Name(name))),
        ".{0,40}".prop_map(|text| Answer::Info(InfoItem::Description(text))),
        any::<[u32; 3]>().prop_map(|[minimum, preferred, maximum]| {
            Answer::Info(InfoItem::BlockSize { minimum, preferred, maximum })
        }),
        (any::<u32>(), ".{0,40}").prop_map(|(id, name)| Answer::MetaContext { id, name }),
        ".{0,40}".prop_map(|message| {
            Answer::Error(ErrorAnswer { reply: ReplyType::ERR_POLICY, message })
        }),
        Just(Answer::Ack),
    ]
}

proptest! {
    #[test]
    fn requests_come_back(dialect in dialects(), request in requests()) {
        let sent = bytes(|out| request.push(out, dialect));
        assert_eq!(sent.len(), Request::wire_len(dialect));
        assert_eq!(Request::parse(dialect, &sent).unwrap(), Some(request));
        assert_eq!(Request::parse(dialect, &sent[..sent.len() - 1]).unwrap(), None);
    }

    #[test]
    fn options_come_back(options in proptest::collection::vec(options(), 0..6)) {
        let mut sent = ClientFlags { no_zeroes: true }.to_bytes().to_vec();
        options.iter().for_each(|option| option.push(&mut sent));
        assert_eq!(walk::client_options(&sent), options);
    }

    #[test]
    fn answers_come_back(answers in proptest::collection::vec(answers(), 0..6)) {
        let mut sent = Greeting { no_zeroes: false }.to_bytes().to_vec();
        answers.iter().for_each(|answer| answer.push(&mut sent, OptionCode::GO));
        assert_eq!(walk::server_answers(&sent), answers);
    }

    /// Anything may come from outside; nothing may panic, and what is returned was there.
    #[test]
    fn noise_is_survived(
        dialect in dialects(),
        noise in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = walk::client_options(&noise);
        let _ = walk::server_answers(&noise);
        let _ = walk::server_replies(dialect, &noise);
        for (_, payload) in walk::client_requests(dialect, &noise) {
            assert!(payload.len() <= noise.len());
        }
    }

    /// Streams that begin well and are damaged in one place get further into the parsers.
    #[test]
    fn damage_is_survived(
        dialect in dialects(),
        options in proptest::collection::vec(options(), 1..5),
        answers in proptest::collection::vec(answers(), 1..5),
        requests in proptest::collection::vec(requests(), 1..5),
        at in any::<proptest::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut streams = [
            ClientFlags { no_zeroes: true }.to_bytes().to_vec(),
            Greeting { no_zeroes: true }.to_bytes().to_vec(),
            Vec::new(),
            Vec::new(),
        ];
        options.iter().for_each(|option| option.push(&mut streams[0]));
        answers.iter().for_each(|answer| answer.push(&mut streams[1], OptionCode::LIST));
        requests.iter().for_each(|request| request.push(&mut streams[2], dialect));
        if dialect != Dialect::Simple {
            for request in &requests {
                let extent = StatusExtent { length: request.length, flags: 1 };
                push_hole(&mut streams[3], dialect, request, range(0, 4096), false);
                push_status(&mut streams[3], dialect, request, 1, &[extent], false);
                push_error_reply(&mut streams[3], dialect, request, Errno::Io, "words");
            }
        }
        for stream in streams.iter_mut().filter(|stream| !stream.is_empty()) {
            let index = at.index(stream.len());
            stream[index] = value;
        }
        let _ = walk::client_options(&streams[0]);
        let _ = walk::server_answers(&streams[1]);
        let _ = walk::client_requests(dialect, &streams[2]);
        let _ = walk::server_replies(dialect, &streams[3]);
    }
}

#[test]
fn replies_are_walked_to_the_end() {
    let read = request(Command::READ, 0, 0, 4096);
    let extent = StatusExtent { length: ByteCount::new(4096), flags: 0 };
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let mut sent = data_header(dialect, &read, range(0, 4), false).to_vec();
        sent.extend_from_slice(b"data");
        push_hole(&mut sent, dialect, &read, range(4, 4092), false);
        push_status(&mut sent, dialect, &read, 1, &[extent], false);
        push_error_reply(&mut sent, dialect, &read, Errno::Io, "words");
        push_ack(&mut sent, dialect, &read);
        let heads = walk::server_replies(dialect, &sent);
        assert_eq!(heads.len(), 5);
        let ReplyHead::Chunk(last) = heads[4] else { panic!("no chunk: {heads:?}") };
        assert!(last.done && last.cookie == read.cookie);
    }
}

#[test]
fn answer_heads() {
    let head = hex("0003e889045565a9 00000007 80000001 00000010");
    let head = AnswerHead::parse(head.first_chunk().unwrap()).unwrap();
    assert_eq!((head.option, head.len), (OptionCode::GO, 16));
    assert!(head.reply.is_error() && head.reply == ReplyType::ERR_UNSUP);
    assert!(AnswerHead::parse(&[0; 20]).is_none());
}
