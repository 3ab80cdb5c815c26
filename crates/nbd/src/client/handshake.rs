//! The client's side of the handshake.

use std::io;

use block_types::{ByteCount, Error, ErrorKind, Result};

use crate::channel::Channel;
use crate::server::ExportEntry;
use crate::wire::{
    Answer, AnswerHead, BASE_ALLOCATION, ClientFlags, ClientOption, Dialect, EXPORT_ANSWER_LEN,
    ErrorAnswer, ExportAnswer, GREETING_LEN, Greeting, InfoItem, InfoQuery, InfoType,
    MAX_OPTION_DATA, MAX_PAYLOAD, MAX_STRING, MetaQuery, ReplyType, TransmissionFlags,
};

/// Most answers to one option, so that a server cannot fill our memory with a list.
const MAX_ANSWERS: usize = 64 << 10;
/// Zeros behind the answer to EXPORT_NAME of a server that does not leave them out.
const PADDING: usize = 124;
/// Block sizes of a server that says nothing about them.
const DEFAULT_PREFERRED: u32 = 4096;

/// What both sides have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) dialect: Dialect,
    pub(super) size: ByteCount,
    pub(super) flags: TransmissionFlags,
    pub(super) minimum: u32,
    pub(super) preferred: u32,
    pub(super) maximum: u32,
    /// The number of `base:allocation`, if the server has it.
    pub(super) allocation: Option<u32>,
}

/// A handshake with a server that has sent its greeting.
pub(super) struct Handshake<'a> {
    channel: Channel<'a>,
    name: &'a str,
    no_zeroes: bool,
}

impl<'a> Handshake<'a> {
    /// Answers the greeting. `name` is what to call the server.
    pub(super) fn begin(channel: Channel<'a>, name: &'a str) -> Result<Self> {
        let mut handshake = Self { channel, name, no_zeroes: false };
        let mut greeting = [0; GREETING_LEN];
        handshake.read(&mut greeting)?;
        let greeting = Greeting::parse(&greeting).ok_or_else(|| {
            handshake.nonsense("is no NBD server, or one without fixed newstyle negotiation")
        })?;
        handshake.no_zeroes = greeting.no_zeroes;
        handshake.write(&ClientFlags { no_zeroes: greeting.no_zeroes }.to_bytes())?;
        Ok(handshake)
    }

    /// Chooses `export`, with the newest dialect that both sides speak, up to `newest`.
    pub(super) fn choose(&self, export: &str, newest: Dialect) -> Result<Agreed> {
        if export.len() > MAX_STRING {
            return Err(Error::new(
                ErrorKind::Invalid,
                self.name,
                "names an export of more than 4096 bytes",
            ));
        }
        let dialect = self.agree_on_dialect(newest)?;
        let allocation = self.choose_allocation(export, dialect)?;
        let wanted = vec![InfoType::BLOCK_SIZE];
        let go = ClientOption::Go(InfoQuery { name: export.to_owned(), wanted });
        let mut agreed = Agreed {
            dialect,
            size: ByteCount::ZERO,
            flags: TransmissionFlags::default(),
            minimum: 1,
            preferred: DEFAULT_PREFERRED,
            maximum: MAX_PAYLOAD,
            allocation,
        };
        match self.ask(&go)? {
            Ok(answers) => self.take_infos(&mut agreed, &answers)?,
            // A server from before GO can only be asked in the old way.
            Err(refusal)
                if refusal.reply == ReplyType::ERR_UNSUP && dialect != Dialect::Extended =>
            {
                self.choose_by_name(&mut agreed, export)?;
            }
            Err(refusal) => return Err(self.refused(&refusal)),
        }
        self.check(&agreed)?;
        Ok(agreed)
    }

    /// The server's exports; the session is over then.
    pub(super) fn list(&self) -> Result<Vec<ExportEntry>> {
        let answers = self.ask(&ClientOption::List)?.map_err(|refusal| self.refused(&refusal))?;
        // A courtesy: the server may be gone already.
        let _ = self.ask(&ClientOption::Abort);
        let entry = |answer| match answer {
            Answer::Server { name, description } => Some(ExportEntry { name, description }),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(entry).collect())
    }

    fn agree_on_dialect(&self, newest: Dialect) -> Result<Dialect> {
        for (dialect, option) in [
            (Dialect::Extended, ClientOption::ExtendedHeaders),
            (Dialect::Structured, ClientOption::StructuredReply),
        ] {
            if dialect <= newest && self.ask(&option)?.is_ok() {
                return Ok(dialect);
            }
        }
        Ok(Dialect::Simple)
    }

    fn choose_allocation(&self, export: &str, dialect: Dialect) -> Result<Option<u32>> {
        if dialect == Dialect::Simple {
            return Ok(None);
        }
        let queries = vec![BASE_ALLOCATION.to_owned()];
        let query = MetaQuery { name: export.to_owned(), queries };
        let answers = self.ask(&ClientOption::SetMetaContext(query))?.unwrap_or_default();
        Ok(answers.iter().find_map(|answer| match answer {
            Answer::MetaContext { id, name } if name == BASE_ALLOCATION => Some(*id),
            _ => None,
        }))
    }

    fn take_infos(&self, agreed: &mut Agreed, answers: &[Answer]) -> Result<()> {
        let mut described = false;
        for answer in answers {
            match answer {
                Answer::Info(InfoItem::Export { size, flags }) => {
                    (agreed.size, agreed.flags, described) = (*size, *flags, true);
                }
                Answer::Info(InfoItem::BlockSize { minimum, preferred, maximum }) => {
                    agreed.minimum = *minimum;
                    agreed.preferred = *preferred;
                    agreed.maximum = (*maximum).min(MAX_PAYLOAD);
                }
                _ => {}
            }
        }
        if described { Ok(()) } else { Err(self.nonsense("does not say the size of the export")) }
    }

    fn choose_by_name(&self, agreed: &mut Agreed, export: &str) -> Result<()> {
        self.send(&ClientOption::ExportName(export.to_owned()))?;
        let mut answer = [0; EXPORT_ANSWER_LEN];
        self.channel.read_exact(&mut answer).map_err(|error| {
            // Closing is the only way to refuse here.
            if error.kind() == io::ErrorKind::UnexpectedEof {
                Error::new(ErrorKind::NotFound, self.name, "does not have this export")
            } else {
                self.broken(error)
            }
        })?;
        let answer = ExportAnswer::parse(&answer).expect("the answer has its length");
        if !self.no_zeroes {
            self.channel.skip(PADDING).map_err(|error| self.broken(error))?;
        }
        (agreed.size, agreed.flags) = (answer.size, answer.flags);
        Ok(())
    }

    fn check(&self, agreed: &Agreed) -> Result<()> {
        let Agreed { minimum, preferred, maximum, .. } = *agreed;
        let sound = minimum.is_power_of_two()
            && minimum <= 64 << 10
            && preferred.is_power_of_two()
            && preferred >= minimum
            && maximum >= minimum
            && agreed.flags.contains(TransmissionFlags::HAS_FLAGS);
        if sound { Ok(()) } else { Err(self.nonsense("announces impossible block sizes or flags")) }
    }

    /// Sends `option` and reads its answers up to the last one, which is either left out (done) or
    /// the inner error (refused).
    fn ask(&self, option: &ClientOption) -> Result<std::result::Result<Vec<Answer>, ErrorAnswer>> {
        self.send(option)?;
        let mut answers = Vec::new();
        while answers.len() < MAX_ANSWERS {
            let mut head = [0; AnswerHead::LEN];
            self.read(&mut head)?;
            let head = AnswerHead::parse(&head)
                .filter(|head| head.option == option.code() && head.len <= MAX_OPTION_DATA)
                .ok_or_else(|| self.nonsense("gives an answer out of step"))?;
            let data = self.channel.read_vec(head.len as usize);
            let data = data.map_err(|error| self.broken(error))?;
            match Answer::parse(head.reply, &data) {
                Some(Answer::Ack) => return Ok(Ok(answers)),
                Some(Answer::Error(refusal)) => return Ok(Err(refusal)),
                Some(answer) => answers.push(answer),
                None => return Err(self.nonsense("gives a malformed answer")),
            }
        }
        Err(self.nonsense("does not stop answering"))
    }

    fn send(&self, option: &ClientOption) -> Result<()> {
        let mut bytes = Vec::new();
        option.push(&mut bytes);
        self.write(&bytes)
    }

    fn read(&self, buffer: &mut [u8]) -> Result<()> {
        self.channel.read_exact(buffer).map_err(|error| self.broken(error))
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        self.channel.write_all(bytes).map_err(|error| self.broken(error))
    }

    fn refused(&self, refusal: &ErrorAnswer) -> Error {
        let (kind, problem) = match refusal.reply {
            ReplyType::ERR_UNKNOWN => (ErrorKind::NotFound, "does not have this export"),
            ReplyType::ERR_POLICY => (ErrorKind::Denied, "does not allow it"),
            ReplyType::ERR_TLS_REQD => {
                (ErrorKind::Unsupported, "asks for TLS, which is not supported")
            }
            ReplyType::ERR_UNSUP => (ErrorKind::Unsupported, "does not offer it"),
            ReplyType::ERR_SHUTDOWN => (ErrorKind::Stopped, "is shutting down"),
            _ => (ErrorKind::Io, "refuses it"),
        };
        let error = Error::new(kind, self.name, problem);
        if refusal.message.is_empty() { error } else { error.because(refusal.message.clone()) }
    }

    fn broken(&self, error: io::Error) -> Error {
        Error::io(self.name, "does not finish the handshake", error)
    }

    fn nonsense(&self, problem: &str) -> Error {
        Error::new(ErrorKind::Corrupt, self.name, problem)
    }
}
