//! The server's side of the handshake: options in, answers out, no I/O.

use std::sync::Arc;

use block_types::{Error, ErrorKind};

use super::export::{Export, ExportSource};
use crate::wire::{
    Answer, ClientOption, Dialect, ExportAnswer, InfoItem, InfoQuery, InfoType, MetaQuery,
    OptionCode, ReplyType, push_answer, push_error, query_lists,
};

/// What both sides have agreed on when transmission begins.
#[derive(Debug)]
pub(super) struct Agreed {
    /// The export the client chose.
    pub(super) export: Arc<Export>,
    /// The name it used for it.
    pub(super) name: String,
    /// The form of requests and replies.
    pub(super) dialect: Dialect,
    /// Numbers of the chosen metadata contexts, as [`context_id`] gives them.
    pub(super) contexts: Vec<u32>,
}

/// How it goes on after an option.
#[derive(Debug)]
pub(super) enum Next {
    /// With the next option.
    Option,
    /// The answer is the last word.
    Close,
    /// With transmission.
    Transmit(Agreed),
}

/// The state of a handshake.
pub(super) struct Negotiation<'s> {
    source: &'s dyn ExportSource,
    no_zeroes: bool,
    dialect: Dialect,
    /// The export name of the last SET_META_CONTEXT that succeeded, and what it chose.
    chosen: Option<(String, Vec<u32>)>,
}

/// The number on the wire of the context at `index` of an export.
pub(super) fn context_id(index: usize) -> u32 {
    u32::try_from(index + 1).expect("an export has few contexts")
}

impl<'s> Negotiation<'s> {
    /// A handshake with a client that can do without padding if `no_zeroes`.
    pub(super) fn new(source: &'s dyn ExportSource, no_zeroes: bool) -> Self {
        Self { source, no_zeroes, dialect: Dialect::Simple, chosen: None }
    }

    /// Answers option `code` with `data` into `out`.
    pub(super) fn answer(&mut self, code: OptionCode, data: &[u8], out: &mut Vec<u8>) -> Next {
        let option = match ClientOption::parse(code, data) {
            Ok(option) => option,
            // EXPORT_NAME has no way to say no.
            Err(_) if code == OptionCode::EXPORT_NAME => return Next::Close,
            Err(fault) => {
                if code == OptionCode::SET_META_CONTEXT {
                    self.chosen = None;
                }
                push_error(out, code, fault.reply, fault.reason);
                return Next::Option;
            }
        };
        match option {
            ClientOption::ExportName(name) => return self.export_name(name, out),
            ClientOption::Abort => {
                push_answer(out, code, ReplyType::ACK, &[]);
                return Next::Close;
            }
            ClientOption::List => self.list(out),
            ClientOption::Info(query) => {
                self.describe(code, &query, out);
            }
            ClientOption::Go(query) => {
                if let Some(export) = self.describe(code, &query, out) {
                    return Next::Transmit(self.agree(export, query.name));
                }
            }
            ClientOption::StructuredReply => self.structured_reply(out),
            ClientOption::ExtendedHeaders => self.extended_headers(out),
            ClientOption::ListMetaContext(query) => self.list_contexts(&query, out),
            ClientOption::SetMetaContext(query) => self.set_contexts(query, out),
            ClientOption::StartTls => {
                push_error(out, code, ReplyType::ERR_UNSUP, "this server does not offer TLS");
            }
            ClientOption::Unknown(_) => {
                push_error(out, code, ReplyType::ERR_UNSUP, "the option is not known");
            }
        }
        Next::Option
    }

    fn export_name(&mut self, name: String, out: &mut Vec<u8>) -> Next {
        // Its answer has no form in the extended dialect, and none for a failure.
        if self.dialect == Dialect::Extended {
            return Next::Close;
        }
        let Ok(export) = self.source.find(&name) else { return Next::Close };
        let answer = ExportAnswer { size: export.size(), flags: export.flags(self.dialect) };
        answer.push(out, self.no_zeroes);
        Next::Transmit(self.agree(export, name))
    }

    fn agree(&mut self, export: Arc<Export>, name: String) -> Agreed {
        // Contexts belong to the export name they were chosen for.
        let contexts = self.chosen.take().filter(|(chosen, _)| *chosen == name).map(|(_, ids)| ids);
        Agreed { export, name, dialect: self.dialect, contexts: contexts.unwrap_or_default() }
    }

    fn list(&self, out: &mut Vec<u8>) {
        for entry in self.source.list() {
            let server = Answer::Server { name: entry.name, description: entry.description };
            server.push(out, OptionCode::LIST);
        }
        push_answer(out, OptionCode::LIST, ReplyType::ACK, &[]);
    }

    /// Answers INFO or GO; the export, if there is one.
    fn describe(
        &self,
        code: OptionCode,
        query: &InfoQuery,
        out: &mut Vec<u8>,
    ) -> Option<Arc<Export>> {
        let export = self.find(code, &query.name, out)?;
        let size = InfoItem::Export { size: export.size(), flags: export.flags(self.dialect) };
        Answer::Info(size).push(out, code);
        if query.wanted.contains(&InfoType::NAME) {
            Answer::Info(InfoItem::Name(export.name().to_owned())).push(out, code);
        }
        if let Some(text) = export.description()
            && query.wanted.contains(&InfoType::DESCRIPTION)
        {
            Answer::Info(InfoItem::Description(text.to_owned())).push(out, code);
        }
        // Sent unasked too: a client that knows the sizes does not make requests that are refused.
        Answer::Info(export.block_sizes()).push(out, code);
        push_answer(out, code, ReplyType::ACK, &[]);
        Some(export)
    }

    fn structured_reply(&mut self, out: &mut Vec<u8>) {
        let code = OptionCode::STRUCTURED_REPLY;
        match self.dialect {
            Dialect::Simple => {
                self.dialect = Dialect::Structured;
                push_answer(out, code, ReplyType::ACK, &[]);
            }
            Dialect::Structured => {
                push_error(out, code, ReplyType::ERR_INVALID, "structured replies are agreed");
            }
            Dialect::Extended => {
                let reply = ReplyType::ERR_EXT_HEADER_REQD;
                push_error(out, code, reply, "extended headers are agreed");
            }
        }
    }

    fn extended_headers(&mut self, out: &mut Vec<u8>) {
        let code = OptionCode::EXTENDED_HEADERS;
        if self.dialect == Dialect::Extended {
            push_error(out, code, ReplyType::ERR_INVALID, "extended headers are agreed");
            return;
        }
        self.dialect = Dialect::Extended;
        push_answer(out, code, ReplyType::ACK, &[]);
    }

    fn list_contexts(&self, query: &MetaQuery, out: &mut Vec<u8>) {
        let code = OptionCode::LIST_META_CONTEXT;
        let Some(export) = self.contexts_of(code, query, out) else { return };
        for context in export.contexts() {
            let asked = query.queries.iter().any(|query| query_lists(query, context.name()));
            if asked || query.queries.is_empty() {
                let name = context.name().to_owned();
                Answer::MetaContext { id: 0, name }.push(out, code);
            }
        }
        push_answer(out, code, ReplyType::ACK, &[]);
    }

    fn set_contexts(&mut self, query: MetaQuery, out: &mut Vec<u8>) {
        let code = OptionCode::SET_META_CONTEXT;
        // The former choice is gone even if this one fails.
        self.chosen = None;
        let Some(export) = self.contexts_of(code, &query, out) else { return };
        let mut ids = Vec::new();
        for (index, context) in export.contexts().iter().enumerate() {
            if query.queries.iter().any(|query| query == context.name()) {
                let id = context_id(index);
                Answer::MetaContext { id, name: context.name().to_owned() }.push(out, code);
                ids.push(id);
            }
        }
        push_answer(out, code, ReplyType::ACK, &[]);
        self.chosen = Some((query.name, ids));
    }

    /// The export a context option is about, if the option is allowed now.
    fn contexts_of(
        &self,
        code: OptionCode,
        query: &MetaQuery,
        out: &mut Vec<u8>,
    ) -> Option<Arc<Export>> {
        if self.dialect == Dialect::Simple {
            push_error(
                out,
                code,
                ReplyType::ERR_INVALID,
                "metadata contexts need structured replies or extended headers",
            );
            return None;
        }
        self.find(code, &query.name, out)
    }

    /// The export called `name`, or the error answer that says why not.
    fn find(&self, code: OptionCode, name: &str, out: &mut Vec<u8>) -> Option<Arc<Export>> {
        match self.source.find(name) {
            Ok(export) => Some(export),
            Err(error) => {
                push_error(out, code, refusal(&error), error.problem());
                None
            }
        }
    }
}

/// The answer that stands for `error`.
fn refusal(error: &Error) -> ReplyType {
    match error.kind() {
        ErrorKind::NotFound => ReplyType::ERR_UNKNOWN,
        ErrorKind::Denied => ReplyType::ERR_POLICY,
        ErrorKind::Cancelled | ErrorKind::Stopped => ReplyType::ERR_SHUTDOWN,
        _ => ReplyType::ERR_PLATFORM,
    }
}

#[cfg(test)]
mod tests;
