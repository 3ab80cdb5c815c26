use std::sync::Arc;

use block_io::MemoryDevice;
use block_types::{ByteCount, ByteRange, Result};

use super::{Negotiation, Next};
use crate::server::{Export, ExportTable, MetaContext};
use crate::wire::{
    Answer, ClientOption, Dialect, InfoItem, InfoQuery, InfoType, MetaQuery, OptionCode,
    OptionHead, ReplyType, StatusExtent, TransmissionFlags, walk,
};

/// A context that only has a name.
struct Named(&'static str);

impl MetaContext for Named {
    fn name(&self) -> &str {
        self.0
    }

    fn status(
        &self,
        _range: ByteRange,
        _each: &mut dyn FnMut(StatusExtent) -> std::ops::ControlFlow<()>,
    ) -> Result<()> {
        Ok(())
    }
}

fn table() -> ExportTable {
    let device = |name: &str| Arc::new(MemoryDevice::new(name, ByteCount::new(1 << 20)));
    let table = ExportTable::new();
    table.insert(
        Export::new("db", device("db"))
            .unwrap()
            .described("the data base")
            .with_context(Arc::new(Named("qemu:dirty-bitmap:daily"))),
    );
    table.insert(Export::new("db@monday", device("monday")).unwrap().read_only());
    table
}

/// Sends one option; what comes back, and how it goes on.
fn ask(negotiation: &mut Negotiation<'_>, option: &ClientOption) -> (Vec<Answer>, Next) {
    let mut sent = Vec::new();
    option.push(&mut sent);
    let (head, data) = sent.split_first_chunk().unwrap();
    let head = OptionHead::parse(head).unwrap();
    let mut out = crate::wire::Greeting { no_zeroes: true }.to_bytes().to_vec();
    let next = negotiation.answer(head.code, data, &mut out);
    (walk::server_answers(&out), next)
}

fn info(name: &str, wanted: &[InfoType]) -> InfoQuery {
    InfoQuery { name: name.to_owned(), wanted: wanted.to_vec() }
}

fn meta(name: &str, queries: &[&str]) -> MetaQuery {
    let queries = queries.iter().map(|&query| query.to_owned()).collect();
    MetaQuery { name: name.to_owned(), queries }
}

/// The kinds of the answers: an error's number, 1 for ACK, and so on.
fn kinds(answers: &[Answer]) -> Vec<u32> {
    let kind = |answer: &Answer| match answer {
        Answer::Ack => 1,
        Answer::Server { .. } => 2,
        Answer::Info(_) => 3,
        Answer::MetaContext { .. } => 4,
        Answer::Error(error) => error.reply.0,
    };
    answers.iter().map(kind).collect()
}

fn names(answers: &[Answer]) -> Vec<(u32, &str)> {
    let name = |answer| match answer {
        &Answer::MetaContext { id, ref name } => Some((id, name.as_str())),
        _ => None,
    };
    answers.iter().filter_map(name).collect()
}

const ACK: &[u32] = &[1];
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const EXT_HEADER_REQD: u32 = 0x8000_000a;

/// Options in order, what each is answered with, and the dialect in the end.
#[test]
fn dialects() {
    use ClientOption::{ExtendedHeaders as Extended, StructuredReply as Structured};
    let table = table();
    let cases: [(&[(ClientOption, u32)], Dialect); 6] = [
        (&[], Dialect::Simple),
        (&[(Structured, 1)], Dialect::Structured),
        (&[(Structured, 1), (Structured, INVALID)], Dialect::Structured),
        (&[(Structured, 1), (Extended, 1)], Dialect::Extended),
        (&[(Extended, 1), (Structured, EXT_HEADER_REQD)], Dialect::Extended),
        (&[(Extended, 1), (Extended, INVALID)], Dialect::Extended),
    ];
    for (steps, dialect) in cases {
        let mut negotiation = Negotiation::new(&table, true);
        for (option, expected) in steps {
            let (answers, _) = ask(&mut negotiation, option);
            assert_eq!(kinds(&answers), [*expected], "{steps:?}");
        }
        let (_, next) = ask(&mut negotiation, &ClientOption::Go(info("db", &[])));
        let Next::Transmit(agreed) = next else { panic!("{steps:?}: no transmission") };
        assert_eq!(agreed.dialect, dialect, "{steps:?}");
    }
}

#[test]
fn go_and_info_describe_the_export() {
    let table = table();
    let mut negotiation = Negotiation::new(&table, true);
    let all = [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE, InfoType(99)];
    let (answers, next) = ask(&mut negotiation, &ClientOption::Info(info("db", &all)));
    assert!(matches!(next, Next::Option), "INFO chooses nothing");
    assert_eq!(kinds(&answers), [3, 3, 3, 3, 1]);
    assert!(answers.contains(&Answer::Info(InfoItem::Name("db".to_owned()))));
    assert!(answers.contains(&Answer::Info(InfoItem::Description("the data base".to_owned()))));

    let (answers, next) = ask(&mut negotiation, &ClientOption::Go(info("db@monday", &[])));
    let Next::Transmit(agreed) = next else { panic!("no transmission") };
    assert_eq!((agreed.export.name(), agreed.dialect), ("db@monday", Dialect::Simple));
    let Answer::Info(InfoItem::Export { size, flags }) = answers[0] else { panic!("{answers:?}") };
    assert_eq!(size, ByteCount::new(1 << 20));
    assert!(flags.contains(TransmissionFlags::READ_ONLY));
    for never in [TransmissionFlags::DF, TransmissionFlags::TRIM, TransmissionFlags::WRITE_ZEROES] {
        assert!(!flags.contains(never), "{flags:?}");
    }
}

#[test]
fn unknown_exports_and_options_do_not_end_the_handshake() {
    let table = table();
    let mut negotiation = Negotiation::new(&table, true);
    for (option, reply) in [
        (ClientOption::Go(info("nothing", &[])), UNKNOWN),
        (ClientOption::Info(info("", &[])), UNKNOWN),
        (ClientOption::StartTls, UNSUP),
        (ClientOption::Unknown(OptionCode(4)), UNSUP),
        (ClientOption::Unknown(OptionCode(77)), UNSUP),
        (ClientOption::SetMetaContext(meta("db", &["base:allocation"])), INVALID),
    ] {
        let (answers, next) = ask(&mut negotiation, &option);
        assert_eq!(kinds(&answers), [reply], "{option:?}");
        assert!(matches!(next, Next::Option), "{option:?}");
    }
    let (answers, _) = ask(&mut negotiation, &ClientOption::List);
    assert_eq!(kinds(&answers), [2, 2, 1]);
    let (answers, next) = ask(&mut negotiation, &ClientOption::Abort);
    assert!(kinds(&answers) == ACK && matches!(next, Next::Close));
}

#[test]
fn malformed_options_are_refused_and_the_next_one_works() {
    let table = table();
    let mut negotiation = Negotiation::new(&table, true);
    let mut out = Vec::new();
    let next = negotiation.answer(OptionCode::GO, &[0, 0, 0, 9, b'x'], &mut out);
    assert!(matches!(next, Next::Option));
    assert_eq!(out[12..16], ReplyType::ERR_INVALID.0.to_be_bytes());
    let (_, next) = ask(&mut negotiation, &ClientOption::Go(info("db", &[])));
    assert!(matches!(next, Next::Transmit(_)));
}

#[test]
fn export_name_has_no_words_for_failure() {
    let table = table();
    let closes = |option: ClientOption, extended: bool| {
        let mut negotiation = Negotiation::new(&table, true);
        if extended {
            ask(&mut negotiation, &ClientOption::ExtendedHeaders);
        }
        matches!(ask(&mut negotiation, &option).1, Next::Close)
    };
    assert!(closes(ClientOption::ExportName("nothing".to_owned()), false));
    assert!(closes(ClientOption::ExportName("db".to_owned()), true));
    assert!(!closes(ClientOption::ExportName("db".to_owned()), false));
    for (no_zeroes, len) in [(true, 10), (false, 134)] {
        let mut out = Vec::new();
        Negotiation::new(&table, no_zeroes).answer(OptionCode::EXPORT_NAME, b"db", &mut out);
        assert_eq!(out.len(), len);
    }
}

#[test]
fn contexts_are_listed_by_prefix_and_chosen_by_name() {
    let table = table();
    let mut negotiation = Negotiation::new(&table, true);
    ask(&mut negotiation, &ClientOption::StructuredReply);
    for (queries, listed) in [
        (&[][..], &["base:allocation", "qemu:dirty-bitmap:daily"][..]),
        (&["base:"], &["base:allocation"]),
        (&["qemu:dirty-bitmap:"], &["qemu:dirty-bitmap:daily"]),
        (&["qemu:allocation-depth"], &[]),
    ] {
        let option = ClientOption::ListMetaContext(meta("db", queries));
        let (answers, _) = ask(&mut negotiation, &option);
        let expected: Vec<_> = listed.iter().map(|&name| (0, name)).collect();
        assert_eq!(names(&answers), expected, "{queries:?}");
        assert_eq!(answers.last(), Some(&Answer::Ack));
    }
    let choose = ["base:", "qemu:dirty-bitmap:daily", "x:y"];
    let option = ClientOption::SetMetaContext(meta("db", &choose));
    let (answers, _) = ask(&mut negotiation, &option);
    assert_eq!(names(&answers), [(2, "qemu:dirty-bitmap:daily")]);
}

/// The choice of contexts when transmission begins, after these options.
fn chosen(options: &[ClientOption], go: &str) -> Vec<u32> {
    let table = table();
    let mut negotiation = Negotiation::new(&table, true);
    ask(&mut negotiation, &ClientOption::StructuredReply);
    for option in options {
        ask(&mut negotiation, option);
    }
    match ask(&mut negotiation, &ClientOption::Go(info(go, &[]))).1 {
        Next::Transmit(agreed) => agreed.contexts,
        other => panic!("no transmission: {other:?}"),
    }
}

#[test]
fn the_last_choice_counts_and_only_for_its_export() {
    let set = |name: &str, queries: &[&str]| ClientOption::SetMetaContext(meta(name, queries));
    let base = || set("db", &["base:allocation"]);
    assert_eq!(chosen(&[base()], "db"), [1]);
    assert_eq!(chosen(&[base()], "db@monday"), []);
    assert_eq!(chosen(&[base(), set("db", &["qemu:dirty-bitmap:daily"])], "db"), [2]);
    assert_eq!(chosen(&[base(), set("db", &[])], "db"), []);
    assert_eq!(chosen(&[base(), set("nothing", &["base:allocation"])], "db"), []);
    // LIST changes nothing.
    assert_eq!(chosen(&[base(), ClientOption::ListMetaContext(meta("db", &[]))], "db"), [1]);
}

#[test]
fn a_single_export_is_the_default_one() {
    let device = Arc::new(MemoryDevice::new("only", ByteCount::new(4096)));
    let table = ExportTable::single(Export::new("only", device).unwrap());
    let mut negotiation = Negotiation::new(&table, true);
    let go = ClientOption::Go(info("", &[InfoType::NAME]));
    let (answers, next) = ask(&mut negotiation, &go);
    assert!(answers.contains(&Answer::Info(InfoItem::Name("only".to_owned()))));
    assert!(matches!(next, Next::Transmit(_)));
}
