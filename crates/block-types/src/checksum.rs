//! CRC-32C, as the formats of the device mapper and the records of Firn use it.

use crc_fast::{CrcAlgorithm, checksum};

/// The standard CRC-32C (Castagnoli) of `bytes`: initial value and final inversion all ones.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The crate returns every width in 64 bits; a 32-bit CRC fills the lower half.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C without the final inversion, as persistent-data stores it.
pub fn crc32c_raw(bytes: &[u8]) -> u32 {
    !crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_raw};

    #[test]
    fn check_value_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_raw(b"123456789"), !0xE306_9283);
        assert_eq!(crc32c(b""), 0);
    }
}
