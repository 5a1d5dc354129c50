//! Bytes that are known at each place of a stream, so that what was lost, doubled or swapped shows.

use std::io::{self, Read, Write};

/// Bytes that are written or checked at once.
const CHUNK: usize = 64 * 1024;

/// What arrived of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// How many bytes.
    pub bytes: u64,
    /// Their CRC-32.
    pub checksum: u32,
}

/// Stream number `stream`'s first `bytes` bytes, in pieces of at most 64 KiB.
pub fn pieces(stream: u64, bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut left = bytes;
    std::iter::from_fn(move || {
        let size = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        left -= size as u64;
        let mut piece = Vec::with_capacity(CHUNK);
        while piece.len() < size {
            // xorshift64: cheap enough for an emulated processor, and without a short period.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.extend_from_slice(&state.to_le_bytes());
        }
        piece.truncate(size);
        (size > 0).then_some(piece)
    })
}

/// What arrives when nothing goes wrong.
#[must_use]
pub fn expected(stream: u64, bytes: u64) -> Arrived {
    let mut checksum = crc32fast::Hasher::new();
    pieces(stream, bytes).for_each(|piece| checksum.update(&piece));
    Arrived { bytes, checksum: checksum.finalize() }
}

/// Sends a stream's first bytes.
///
/// # Errors
///
/// What the write failed with.
pub fn send(mut to: impl Write, stream: u64, bytes: u64) -> io::Result<()> {
    pieces(stream, bytes).try_for_each(|piece| to.write_all(&piece))
}

/// Takes what comes, to the stream's end.
///
/// # Errors
///
/// What the read failed with.
pub fn receive(mut from: impl Read) -> io::Result<Arrived> {
    let (mut checksum, mut bytes) = (crc32fast::Hasher::new(), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(Arrived { bytes, checksum: checksum.finalize() }),
            count => {
                checksum.update(&chunk[..count]);
                bytes += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_and_what_is_harmed_shows() {
        for bytes in [0, 1, 7, 65_535, 65_536, 200_003] {
            let mut sent = Vec::new();
            send(&mut sent, 5, bytes).unwrap();
            assert_eq!(receive(sent.as_slice()).unwrap(), expected(5, bytes));
            assert_eq!(sent.len() as u64, bytes);
        }
        assert_ne!(expected(5, 100), expected(6, 100));
    }
}
