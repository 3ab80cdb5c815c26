//! Text in the making.

use std::io::Write;

use block_types::{Error, Result};

/// Bytes that are held back before they are written: 256 KiB.
const FULL: usize = 256 << 10;

/// Text on its way to a writer, in large pieces.
pub(crate) struct Text<W> {
    bytes: Vec<u8>,
    out: W,
}

impl<W: Write> Text<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { bytes: Vec::with_capacity(FULL + 4096), out }
    }

    /// Adds a word.
    #[inline]
    pub(crate) fn word(&mut self, word: &str) -> &mut Self {
        self.bytes.extend_from_slice(word.as_bytes());
        self
    }

    /// Adds a number, in decimal.
    #[inline]
    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        let mut digits = [0; 20];
        let mut start = digits.len();
        let mut rest = number;
        loop {
            start -= 1;
            digits[start] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.bytes.extend_from_slice(&digits[start..]);
        self
    }

    /// Ends a line, and writes what was held back once it is much.
    #[inline]
    pub(crate) fn line(&mut self) -> Result<()> {
        self.bytes.push(b'\n');
        if self.bytes.len() >= FULL {
            return self.write();
        }
        Ok(())
    }

    /// Writes everything, and flushes the writer.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.write()?;
        self.out.flush().map_err(failed)
    }

    fn write(&mut self) -> Result<()> {
        self.out.write_all(&self.bytes).map_err(failed)?;
        self.bytes.clear();
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("output", "cannot be written", error)
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn numbers_are_written_whole() {
        let mut out = Vec::new();
        let mut text = Text::new(&mut out);
        for number in [0, 9, 10, 1234567890, u64::MAX] {
            text.number(number).word(" ");
        }
        text.line().unwrap();
        text.finish().unwrap();
        assert_eq!(out, b"0 9 10 1234567890 18446744073709551615 \n");
    }
}
