//! The boot configuration after an initramfs (Linux, `admin-guide/bootconfig.rst`): its text, the text's size and checksum
//! as little-endian numbers of 4 bytes, and a magic word. Kernels look for the word in the last bytes, so that nothing
//! may follow.

use super::error::InitramfsError;

const MAGIC: &[u8] = b"#BOOTCONFIG\n";

/// The most bytes that a boot loader may have added to align the whole.
const MAX_PADDING: usize = 3;

/// Splits an initramfs from the boot configuration after it, which is empty if there is none.
pub(super) fn split(base: &[u8]) -> Result<(&[u8], &[u8]), InitramfsError> {
    let ends = (0..=MAX_PADDING).filter_map(|padding| base.get(..base.len().checked_sub(padding)?));
    let Some((whole, before_magic)) = ends.filter_map(|end| Some((end, end.strip_suffix(MAGIC)?))).next() else {
        return Ok((base, &[]));
    };
    let text = beginning(before_magic).ok_or(InitramfsError::InvalidBootconfig)?;
    Ok(whole.split_at(text))
}

/// Returns where the text begins, if its size and checksum are right.
fn beginning(before_magic: &[u8]) -> Option<usize> {
    let (rest, checksum) = before_magic.split_last_chunk()?;
    let (rest, size) = rest.split_last_chunk()?;
    let begins = rest.len().checked_sub(usize::try_from(u32::from_le_bytes(*size)).ok()?)?;
    let sum = rest.get(begins..)?.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    (sum == u32::from_le_bytes(*checksum)).then_some(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootconfig(text: &[u8]) -> Vec<u8> {
        let (size, sum) = (u32::try_from(text.len()).unwrap(), text.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        [text, &size.to_le_bytes(), &sum.to_le_bytes(), MAGIC].concat()
    }

    #[test]
    fn a_bootconfig_is_what_kernels_find() {
        let after = bootconfig(b"kernel { quiet }\n");
        for padding in 0..=MAX_PADDING {
            let base = [b"an initramfs", &after[..], &vec![0; padding]].concat();
            assert_eq!(split(&base).unwrap(), (&b"an initramfs"[..], &after[..]));
        }
        let base = [&after[..], &[0; 4]].concat();
        assert_eq!(split(&base).unwrap(), (&base[..], &b""[..]));
        assert_eq!(split(b"").unwrap(), (&b""[..], &b""[..]));
    }

    #[test]
    fn a_malformed_one_is_refused() {
        let after = bootconfig(b"text");
        for at in [0, 4, 8] {
            let mut wrong = after.clone();
            wrong[at] ^= 0x40;
            assert!(matches!(split(&wrong).unwrap_err(), InitramfsError::InvalidBootconfig), "byte {at}");
        }
        assert!(matches!(split(MAGIC).unwrap_err(), InitramfsError::InvalidBootconfig));
    }
}
