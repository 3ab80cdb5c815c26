//! Sizes as people write them: `64K`, `20G`, `4KiB`, `4KB`, `8s`.

use crate::{ByteCount, Error, ErrorKind, Result, SECTOR};

/// Reads a size. A bare number is bytes; `k m g t p e`, in either case and with or without `iB`,
/// are powers of 1024; `kB` and the like are powers of 1000; `s` is sectors of 512 bytes. A
/// fraction is taken if it comes to whole bytes (`1.5G`).
///
/// # Errors
/// [`ErrorKind::Invalid`] if the text is no size, or one past 2^64 - 1 bytes.
pub fn parse_size(text: &str) -> Result<ByteCount> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bytes = unit_bytes(unit).and_then(|unit| scale(number, unit));
    bytes.map(ByteCount::new).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("size '{text}'"), "is not a size")
            .advise("write bytes, or a number with K, M, G, T (powers of 1024), as in 20G")
    })
}

/// Bytes of one unit.
fn unit_bytes(unit: &str) -> Option<u64> {
    let lower = unit.to_ascii_lowercase();
    let (letter, base) = match lower.as_bytes() {
        [] | [b'b'] => return Some(1),
        [b's'] => return Some(SECTOR),
        [letter] | [letter, b'i', b'b'] => (*letter, 1024u64),
        [letter, b'b'] => (*letter, 1000),
        _ => return None,
    };
    let power = b"kmgtpe".iter().position(|&known| known == letter)?;
    base.checked_pow(u32::try_from(power).ok()? + 1)
}

/// `number`, perhaps with a fraction, times `unit`, if that is a whole number of bytes.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let bytes = whole.checked_mul(unit)?;
    if fraction.is_empty() {
        return (!number.ends_with('.')).then_some(bytes);
    }
    let tenths = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let numerator = fraction.parse::<u128>().ok()?.checked_mul(u128::from(unit))?;
    if numerator % tenths != 0 {
        return None;
    }
    bytes.checked_add(u64::try_from(numerator / tenths).ok()?)
}

/// Writes a size in the largest binary unit that needs at most two decimals: `20 GiB`, `1.5 KiB`.
pub fn format_size(size: ByteCount) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let bytes = size.get();
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10) as usize;
    // Display only: two decimals of a double are exact enough at every size.
    let value = bytes as f64 / 1024f64.powi(i32::try_from(power).unwrap_or(0));
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {}", UNITS[power - 1])
}

#[cfg(test)]
mod tests {
    use super::{format_size, parse_size};
    use crate::ByteCount;

    #[test]
    fn reads_what_the_peers_read() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("4KiB", 4096),
            ("4KB", 4000),
            ("1.5G", 3 << 29),
            ("128s", 65536),
            ("2T", 2 << 40),
            ("16b", 16),
        ] {
            assert_eq!(parse_size(text).expect(text).get(), bytes, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in ["", "G", "-1", "1X", "1.", ".5G", "1.3", "99999999999999999999", "16E1", "17E"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn writes_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(format_size(ByteCount::new(bytes)), text);
        }
    }
}
