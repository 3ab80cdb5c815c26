//! The header: unlocked by a secret, and made.

use std::time::{Duration, Instant};

use block_types::{Error, ErrorKind, Result, SECTOR};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use super::key::{Hash, Key, fill_random};
use super::{Secret, SectorCipher};

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
const SLOTS: usize = 8;
/// Every writer has this many.
const STRIPES: u32 = 4000;
/// The largest area of header and slots that is read.
pub(crate) const AREA_LIMIT: u64 = 16 << 20;
/// Who asks for more work than this, about a minute, does not want to be unlocked.
const ITERATION_LIMIT: u32 = 1 << 28;
/// And not for less, when a header is made.
const LEAST_ITERATIONS: u32 = 1000;
/// The longest key: two of 256 bits, for XTS.
const KEY_LIMIT: usize = 64;
/// Header and slots begin at multiples of this.
const ALIGNMENT: usize = 4096;
/// Bytes of a header that is made, with the room for all slots.
pub(crate) const AREA: u64 = (ALIGNMENT + SLOTS * ROOM) as u64;
/// The room for the key of one slot.
const ROOM: usize = (KEY_LIMIT * STRIPES as usize).next_multiple_of(ALIGNMENT);
const CIPHER: &str = "aes";
const MODE: &str = "xts-plain64";
const HASH: &str = "sha256";

/// The header as it stands there.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 6],
    version: U16,
    cipher_name: [u8; 32],
    cipher_mode: [u8; 32],
    hash: [u8; 32],
    /// In sectors. Inside a qcow2 image nobody looks at it.
    payload_offset: U32,
    key_bytes: U32,
    /// Of the key, to tell the right one.
    digest: [u8; 20],
    digest_salt: [u8; 32],
    digest_iterations: U32,
    uuid: [u8; 40],
    slots: [Slot; SLOTS],
}

/// A copy of the key under one secret.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Slot {
    active: U32,
    iterations: U32,
    salt: [u8; 32],
    /// In sectors.
    material_offset: U32,
    stripes: U32,
}

const _: () = assert!(size_of::<Header>() == 592);
const _: () = assert!(size_of::<Slot>() == 48);

/// The cipher of the data, if `secret` opens one of the slots of the header in `area`.
///
/// # Errors
/// [`ErrorKind::Denied`] for another secret; [`ErrorKind::Corrupt`]; [`ErrorKind::Unsupported`] for
/// ciphers and hashes that are not known, by name.
pub(crate) fn unlock(object: &str, area: &[u8], secret: &Secret) -> Result<SectorCipher> {
    let corrupt =
        |problem: &str| Error::new(ErrorKind::Corrupt, object, format!("LUKS header: {problem}"));
    let (header, _) =
        Header::read_from_prefix(area).map_err(|_| corrupt("the header is cut short"))?;
    if header.magic != MAGIC || header.version.get() != 1 {
        return Err(corrupt("the header is not one of LUKS, version 1"));
    }
    let len = header.key_bytes.get() as usize;
    if len == 0 || len > KEY_LIMIT {
        return Err(corrupt(&format!("has a key of {len} bytes")));
    }
    let (name, mode) = (text(&header.cipher_name), text(&header.cipher_mode));
    let hash = Hash::named(object, &text(&header.hash))?;
    let check_work = |iterations: u32| match iterations {
        1..=ITERATION_LIMIT => Ok(iterations),
        other => Err(corrupt(&format!("wants {other} iterations"))),
    };
    let digest_iterations = check_work(header.digest_iterations.get())?;
    for slot in header.slots.iter().filter(|slot| slot.active.get() == ACTIVE) {
        let from = u64::from(slot.material_offset.get()) * SECTOR;
        let size = len * slot.stripes.get() as usize;
        let end = from + (size as u64).next_multiple_of(SECTOR);
        let material = area.get(from as usize..end as usize);
        let (Some(material), STRIPES) = (material, slot.stripes.get()) else {
            return Err(corrupt("has a slot outside the header"));
        };
        let iterations = check_work(slot.iterations.get())?;
        let slot_key = hash.derive(secret.bytes(), &slot.salt, iterations, len);
        let cipher = SectorCipher::new(object, &name, &mode, &slot_key)?;
        let mut material = Zeroizing::new(material.to_vec());
        cipher.decrypt(&mut material, 0);
        let key = hash.merge(&material[..size], len);
        let digest = hash.derive(&key, &header.digest_salt, digest_iterations, 20);
        if *digest == header.digest {
            return SectorCipher::new(object, &name, &mode, &key);
        }
    }
    Err(Error::new(ErrorKind::Denied, object, "is encrypted, and not by this secret")
        .advise("name the file with the right secret; every byte counts, a line end, too"))
}

/// A header with one slot, which `secret` opens, and the room for the others; opening it takes
/// about `time` on this machine. `uuid` is what others call it by.
///
/// # Errors
/// Where the system has no random bytes.
pub(crate) fn create(secret: &Secret, time: Duration, uuid: &str) -> Result<Vec<u8>> {
    let hash = Hash::Sha256;
    let mut key: Key = Zeroizing::new(vec![0; KEY_LIMIT]);
    fill_random(&mut key)?;
    let iterations = iterations(hash, time);
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = 1.into();
    put(&mut header.cipher_name, CIPHER);
    put(&mut header.cipher_mode, MODE);
    put(&mut header.hash, HASH);
    put(&mut header.uuid, uuid);
    header.payload_offset = ((AREA / SECTOR) as u32).into();
    header.key_bytes = (KEY_LIMIT as u32).into();
    fill_random(&mut header.digest_salt)?;
    // An eighth of the work: each slot that is tried costs that, too.
    let digest_iterations = (iterations / 8).max(LEAST_ITERATIONS);
    header.digest_iterations = digest_iterations.into();
    let digest = hash.derive(&key, &header.digest_salt, digest_iterations, 20);
    header.digest.copy_from_slice(&digest);
    for (number, slot) in header.slots.iter_mut().enumerate() {
        let at = (ALIGNMENT + number * ROOM) as u64 / SECTOR;
        slot.active = INACTIVE.into();
        slot.material_offset = (at as u32).into();
        slot.stripes = STRIPES.into();
    }
    let slot = &mut header.slots[0];
    slot.active = ACTIVE.into();
    slot.iterations = iterations.into();
    fill_random(&mut slot.salt)?;
    let slot_key = hash.derive(secret.bytes(), &slot.salt, iterations, KEY_LIMIT);
    let mut material = hash.split(&key, STRIPES as usize)?;
    SectorCipher::new("a new image", CIPHER, MODE, &slot_key)?.encrypt(&mut material, 0);
    let mut area = vec![0; AREA as usize];
    area[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    area[ALIGNMENT..ALIGNMENT + material.len()].copy_from_slice(&material);
    Ok(area)
}

/// How many iterations take about `time`.
fn iterations(hash: Hash, time: Duration) -> u32 {
    let mut count: u32 = LEAST_ITERATIONS;
    loop {
        let began = Instant::now();
        // Two digests make a key of 64 bytes, as the slot's.
        hash.derive(b"measured", &[7; 32], count, KEY_LIMIT);
        let taken = began.elapsed();
        if taken >= Duration::from_millis(20) || count >= ITERATION_LIMIT / 4 {
            let wanted = f64::from(count) * time.as_secs_f64() / taken.as_secs_f64().max(1e-9);
            // A float that is too large becomes the largest number.
            return (wanted as u32).clamp(LEAST_ITERATIONS, ITERATION_LIMIT);
        }
        count *= 4;
    }
}

/// A field with zeros behind its end.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn put(field: &mut [u8], text: &str) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::{Secret, create, unlock};
    use block_types::ErrorKind;
    use std::time::Duration;

    const UUID: &str = "6b6f2b3e-7f4d-4b5a-9d6e-1c2d3e4f5a6b";

    #[test]
    fn only_the_secret_opens_what_it_has_made() {
        let secret = Secret::new(b"firn".to_vec());
        let area = create(&secret, Duration::ZERO, UUID).expect("made");
        let cipher = unlock("it", &area, &secret).expect("opened");
        let again = unlock("it", &area, &secret).expect("opened");
        let mut sector = [5; 512];
        cipher.encrypt(&mut sector, 9);
        assert_ne!(sector, [5; 512]);
        again.decrypt(&mut sector, 9);
        assert_eq!(sector, [5; 512]);
        for wrong in ["firn\n", "", "Firn"] {
            let error = unlock("it", &area, &Secret::new(wrong.into())).err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Denied, "{wrong:?}");
        }
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn a_header_that_lies_is_refused_at_once() {
        let secret = Secret::new(b"firn".to_vec());
        let area = create(&secret, Duration::ZERO, UUID).expect("made");
        // Magic, version, key bytes, the digest's iterations, the slot's, its place, its stripes.
        for at in [0, 6, 108, 164, 212, 248, 252] {
            let mut bad = area.clone();
            bad[at..at + 4].fill(0xff);
            let error = unlock("it", &bad, &secret).err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
        }
        let error = unlock("it", &area[..591], &secret).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        for (at, name) in [(8, "xes"), (72, "xha256")] {
            let mut other = area.clone();
            other[at] = b'x';
            let error = unlock("it", &other, &secret).err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
