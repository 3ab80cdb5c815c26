//! Cutting the input into tags.

use std::io::BufRead;

use block_types::{Error, Result};

use super::element::{Element, is_space, wrong};

/// The longest tag or comment that is accepted, in bytes.
const LONGEST: usize = 64 << 10;

/// The tags of an input, one after another. Memory is bounded, whatever comes.
pub(crate) struct Lexer<R> {
    input: R,
    /// What was read last, without its brackets, if it did not lie in one piece.
    tag: Vec<u8>,
    /// Bytes of the input that the last tag lies in.
    used: usize,
    line: u64,
}

impl<R: BufRead> Lexer<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, tag: Vec::new(), used: 0, line: 1 }
    }

    /// The line that was reached, for messages about the end of the input.
    pub(crate) fn wrong(&self, problem: &str) -> Error {
        wrong(self.line, problem)
    }

    /// The next tag, or `None` at the end of the input. Comments and the declaration are skipped.
    ///
    /// # Errors
    /// `Invalid`, naming the line; the failures of the input.
    pub(crate) fn next(&mut self) -> Result<Option<Element<'_>>> {
        self.input.consume(std::mem::take(&mut self.used));
        while self.skip_space()? {
            match self.peek()? {
                b'!' => self.skip_comment()?,
                b'?' => self.read_until(|read| read.ends_with(b"?>"))?,
                _ => {
                    let tag = match self.read_tag()? {
                        None => &self.tag[..],
                        Some(len) => {
                            self.used = len + 1;
                            &self.input.fill_buf().map_err(failed)?[..len]
                        }
                    };
                    return Element::parse(tag, self.line).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// Goes on to the byte behind the next `<`; `false` at the end of the input.
    fn skip_space(&mut self) -> Result<bool> {
        loop {
            let bytes = self.input.fill_buf().map_err(failed)?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let space = bytes.iter().position(|&byte| !is_space(byte)).unwrap_or(bytes.len());
            self.line += newlines(&bytes[..space]);
            match bytes.get(space) {
                None => self.input.consume(space),
                Some(b'<') => {
                    self.input.consume(space + 1);
                    return Ok(true);
                }
                Some(_) => return Err(wrong(self.line, "has text outside of tags")),
            }
        }
    }

    /// The next byte, which stays there.
    fn peek(&mut self) -> Result<u8> {
        let first = self.input.fill_buf().map_err(failed)?.first().copied();
        first.ok_or_else(|| wrong(self.line, "ends inside a tag"))
    }

    /// Reads a tag up to its `>`. Where that lies in the same piece of the input, which is nearly
    /// always, the tag stays there, and its length comes back; else it is put together in memory.
    fn read_tag(&mut self) -> Result<Option<usize>> {
        let bytes = self.input.fill_buf().map_err(failed)?;
        if let Some(end) = bytes.iter().position(|&byte| byte == b'>') {
            let count = |wanted: u8| bytes[..end].iter().filter(|&&byte| byte == wanted).count();
            // Else the bracket stands inside a value.
            if count(b'"') % 2 == 0 && count(b'\'') == 0 && end <= LONGEST {
                self.line += newlines(&bytes[..end]);
                return Ok(Some(end));
            }
        }
        self.gather_tag().map(|()| None)
    }

    /// Reads a tag piece by piece, minding quotes.
    fn gather_tag(&mut self) -> Result<()> {
        self.tag.clear();
        // The quote that ends the value which is being read.
        let mut quote = None;
        loop {
            let byte = self.peek()?;
            self.input.consume(1);
            match (quote, byte) {
                (None, b'>') => return Ok(()),
                (None, b'"' | b'\'') => quote = Some(byte),
                (Some(open), _) if open == byte => quote = None,
                _ => {}
            }
            if self.tag.len() == LONGEST {
                return Err(wrong(self.line, "has a tag of more than 64 KiB"));
            }
            self.tag.push(byte);
            self.line += u64::from(byte == b'\n');
        }
    }

    fn skip_comment(&mut self) -> Result<()> {
        self.read_until(|read| read.len() == b"!--".len())?;
        if self.tag != b"!--" {
            return Err(self.wrong("has a declaration, which is not supported"));
        }
        self.read_until(|read| read.ends_with(b"-->"))
    }

    /// Reads byte by byte until what was read is complete.
    fn read_until(&mut self, complete: impl Fn(&[u8]) -> bool) -> Result<()> {
        self.tag.clear();
        while !complete(&self.tag) {
            let byte = self.peek()?;
            self.input.consume(1);
            self.tag.push(byte);
            self.line += u64::from(byte == b'\n');
            if self.tag.len() > LONGEST {
                return Err(wrong(self.line, "has a comment of more than 64 KiB"));
            }
        }
        Ok(())
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

fn failed(error: std::io::Error) -> Error {
    Error::io("input", "cannot be read", error)
}

#[cfg(test)]
mod tests {
    use super::super::Tag;
    use super::{LONGEST, Lexer};
    use std::io::BufReader;

    /// What each tag is, read through a buffer of `buffer` bytes.
    fn tags(input: &str, buffer: usize) -> Result<Vec<(Tag, String)>, String> {
        let mut lexer = Lexer::new(BufReader::with_capacity(buffer, input.as_bytes()));
        let mut found = Vec::new();
        loop {
            match lexer.next() {
                Ok(Some(element)) => found.push((element.tag, element.shown())),
                Ok(None) => return Ok(found),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    #[test]
    fn tags_are_cut_wherever_the_buffer_ends() {
        let input =
            "<?xml version=\"1.0\"?>\n<!-- it's > here --><a x=\"1>2\" y='\"'>\n <b/></a>\n";
        let expected: Vec<_> = [(Tag::Open, "a"), (Tag::Empty, "b"), (Tag::Close, "a")]
            .map(|(tag, name)| (tag, name.to_owned()))
            .into();
        for buffer in 1..80 {
            assert_eq!(tags(input, buffer), Ok(expected.clone()), "{buffer}");
        }
    }

    #[test]
    fn faults_are_named_by_their_line() {
        for (input, fault) in [
            ("<a>\n\nword</a>", "line 3: has text outside of tags"),
            ("<a>\n<b", "line 2: ends inside a tag"),
            ("<a x=\"\n>", "line 2: ends inside a tag"),
            ("<!DOCTYPE a>", "line 1: has a declaration, which is not supported"),
            ("<!-- ", "line 1: ends inside a tag"),
            ("<>", "line 1: has a tag without a name"),
            ("\n</a x=\"1\">", "line 2: has attributes in the end of an element"),
        ] {
            assert_eq!(tags(input, 8), Err(fault.to_owned()), "{input:?}");
        }
        let long = format!("<a x=\"{}\">", "1".repeat(LONGEST));
        assert_eq!(tags(&long, 4096), Err("line 1: has a tag of more than 64 KiB".to_owned()));
    }

    #[test]
    fn attributes_are_read_by_name() {
        let mut lexer = Lexer::new("<m b = '7' a=\"18446744073709551615\"/>".as_bytes());
        let element = lexer.next().unwrap().unwrap();
        assert_eq!(element.numbers(["a", "b"]).unwrap(), [u64::MAX, 7]);
        for (input, fault) in [
            ("<m a=\"1\"/>", "line 1: <m> lacks the attribute \"b\""),
            ("<m a=\"1\" b=\"2\" c=\"3\"/>", "line 1: <m> has no attribute \"c\""),
            ("<m a=\"1\" a=\"2\"/>", "line 1: has a twice"),
            ("<m a=\"-1\" b=\"2\"/>", "line 1: has a=\"-1\", which is no number of 64 bits"),
            (
                "<m a=\"18446744073709551616\" b=\"1\"/>",
                "line 1: has a=\"18446744073709551616\", which is no number of 64 bits",
            ),
            ("<m a=\"\" b=\"2\"/>", "line 1: has a=\"\", which is no number of 64 bits"),
            ("<m a b=\"2\"/>", "line 1: has a broken attribute: name=\"value\" is expected"),
            ("<m a=1 b=\"2\"/>", "line 1: has a broken attribute: name=\"value\" is expected"),
        ] {
            let mut lexer = Lexer::new(input.as_bytes());
            let element = lexer.next().unwrap().unwrap();
            let error = element.numbers(["a", "b"]).unwrap_err();
            assert_eq!(error.to_string(), fault, "{input}");
        }
    }
}
