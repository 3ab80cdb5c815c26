//! One tag of the input, and its attributes.

use block_types::{Error, ErrorKind, Result};

/// What sort of tag it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// `<name ...>`
    Open,
    /// `</name>`
    Close,
    /// `<name .../>`
    Empty,
}

/// A tag, as it lies in the input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'i> {
    pub(crate) tag: Tag,
    pub(crate) name: &'i [u8],
    /// What stands between the name and the end of the tag.
    attributes: &'i [u8],
    /// The line it ends in, counted from 1.
    line: u64,
}

impl<'i> Element<'i> {
    /// The tag with `inside` between its angle brackets.
    pub(super) fn parse(inside: &'i [u8], line: u64) -> Result<Self> {
        let (tag, inside) = match inside {
            [b'/', rest @ ..] => (Tag::Close, rest),
            [rest @ .., b'/'] => (Tag::Empty, rest),
            _ => (Tag::Open, inside),
        };
        let end = inside.iter().position(|&byte| is_space(byte)).unwrap_or(inside.len());
        let (name, attributes) = inside.split_at(end);
        let element = Self { tag, name, attributes, line };
        if name.is_empty() {
            return Err(element.wrong("has a tag without a name"));
        }
        if tag == Tag::Close && !attributes.iter().all(|&byte| is_space(byte)) {
            return Err(element.wrong("has attributes in the end of an element"));
        }
        Ok(element)
    }

    /// The failure that this element is.
    pub(crate) fn wrong(&self, problem: impl Into<String>) -> Error {
        wrong(self.line, problem)
    }

    /// The name, for messages.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name[..self.name.len().min(40)]).into_owned()
    }

    /// Where the element stands, for messages.
    pub(crate) fn place(&self) -> String {
        format!("line {}", self.line)
    }

    /// The values of the attributes `names`, in that order.
    ///
    /// # Errors
    /// `Invalid` for an attribute that is not among them, or is there twice, and for broken syntax.
    pub(crate) fn values<const N: usize>(&self, names: [&str; N]) -> Result<[Option<&'i [u8]>; N]> {
        let mut values = [None; N];
        let mut rest = trim(self.attributes);
        while !rest.is_empty() {
            let (name, value, behind) = self.attribute(rest)?;
            rest = behind;
            let known = names.iter().position(|known| known.as_bytes() == name);
            let Some(index) = known else {
                let name = String::from_utf8_lossy(&name[..name.len().min(40)]);
                return Err(self.wrong(format!("<{}> has no attribute {name:?}", self.shown())));
            };
            if values[index].replace(value).is_some() {
                return Err(self.wrong(format!("has {} twice", names[index])));
            }
        }
        Ok(values)
    }

    /// The numbers that the attributes `names` hold, all of which have to be there.
    ///
    /// # Errors
    /// As [`values`](Element::values), for missing ones, and for what is no number.
    pub(crate) fn numbers<const N: usize>(&self, names: [&str; N]) -> Result<[u64; N]> {
        let values = self.values(names)?;
        let mut numbers = [0; N];
        for (index, number) in numbers.iter_mut().enumerate() {
            *number = self.required(names[index], values[index])?;
        }
        Ok(numbers)
    }

    /// The number in the value of the attribute `name`, which has to be there.
    pub(crate) fn required(&self, name: &str, value: Option<&[u8]>) -> Result<u64> {
        match self.number(name, value)? {
            Some(number) => Ok(number),
            None => Err(self.wrong(format!("<{}> lacks the attribute {name:?}", self.shown()))),
        }
    }

    /// The number in the value of the attribute `name`, if it is there.
    pub(crate) fn number(&self, name: &str, value: Option<&[u8]>) -> Result<Option<u64>> {
        let Some(value) = value else { return Ok(None) };
        match decimal(value) {
            Some(number) => Ok(Some(number)),
            None => {
                let value = String::from_utf8_lossy(&value[..value.len().min(40)]);
                Err(self.wrong(format!("has {name}={value:?}, which is no number of 64 bits")))
            }
        }
    }

    /// The first attribute of `rest`: its name, its value, and what comes behind.
    fn attribute(&self, rest: &'i [u8]) -> Result<(&'i [u8], &'i [u8], &'i [u8])> {
        let broken = || self.wrong("has a broken attribute: name=\"value\" is expected");
        let equals = rest.iter().position(|&byte| byte == b'=').ok_or_else(broken)?;
        let name = trim(&rest[..equals]);
        let (&quote, value) = trim(&rest[equals + 1..]).split_first().ok_or_else(broken)?;
        let plain = !name.iter().any(|&byte| is_space(byte) || matches!(byte, b'"' | b'\''));
        if !matches!(quote, b'"' | b'\'') || name.is_empty() || !plain {
            return Err(broken());
        }
        let end = value.iter().position(|&byte| byte == quote).ok_or_else(broken)?;
        Ok((name, &value[..end], trim(&value[end + 1..])))
    }
}

/// The failure of the input in `line`.
pub(super) fn wrong(line: u64, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, format!("line {line}"), problem)
}

pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// `bytes` without white space at both ends.
fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

/// The number that `digits` are, if they are one of 64 bits.
#[inline]
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut number: u64 = 0;
    for &digit in digits {
        let value = digit.wrapping_sub(b'0');
        if value > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(value))?;
    }
    Some(number)
}
