//! Sizes on the command line.

use block_types::{ByteCount, Error, ErrorKind, Result, SECTOR, parse_size};

/// A size to change to: `40G`, or `+10G` for so much more than now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewSize {
    /// This size.
    To(ByteCount),
    /// So much more.
    More(ByteCount),
}

impl NewSize {
    /// The size in full, where it is `now` at present.
    ///
    /// # Errors
    /// `Invalid` where the sum has no end.
    pub(crate) fn relative_to(self, now: ByteCount) -> Result<ByteCount> {
        match self {
            Self::To(size) => Ok(size),
            Self::More(more) => now.checked_add(more).ok_or_else(|| {
                let problem = format!("cannot be added to the {} there are", now.get());
                Error::new(ErrorKind::Invalid, format!("size '+{}'", more.get()), problem)
                    .advise("say a smaller size")
            }),
        }
    }
}

/// Reads a size that is not 0.
pub(crate) fn size(text: &str) -> Result<ByteCount> {
    let size = parse_size(text)?;
    if size.is_zero() {
        return Err(Error::new(ErrorKind::Invalid, format!("size '{text}'"), "is nothing")
            .advise("say how large it is to be, as in 20G"));
    }
    Ok(size)
}

/// Reads a size of whole sectors, as a volume has.
pub(crate) fn whole_sectors(text: &str) -> Result<ByteCount> {
    let size = size(text)?;
    if !size.is_aligned(ByteCount::new(SECTOR)) {
        let next = size.div_ceil(ByteCount::new(SECTOR)).saturating_mul(SECTOR);
        let problem = "is not a multiple of 512 bytes";
        return Err(Error::new(ErrorKind::Invalid, format!("size '{text}'"), problem)
            .advise(format!("say {next}, or a size in K, M, G, T")));
    }
    Ok(size)
}

/// Reads a size to change to.
pub(crate) fn new_size(text: &str) -> Result<NewSize> {
    match text.strip_prefix('+') {
        Some(more) => whole_sectors(more).map(NewSize::More),
        None => whole_sectors(text).map(NewSize::To),
    }
}

#[cfg(test)]
mod tests {
    use super::{NewSize, new_size, size};
    use block_types::ByteCount;

    #[test]
    fn sizes_are_absolute_or_more() {
        let now = ByteCount::new(1 << 30);
        let after = |text| new_size(text).unwrap().relative_to(now).unwrap().get();
        assert_eq!(after("2G"), 2 << 30);
        assert_eq!(after("+1G"), 2 << 30);
        assert!(NewSize::More(ByteCount::new(u64::MAX)).relative_to(now).is_err());
        for bad in ["", "+", "++1G", "0", "+0", "-1G", "513"] {
            assert!(new_size(bad).is_err(), "{bad}");
        }
        assert!(size("+1G").is_err());
    }
}
