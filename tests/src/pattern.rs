//! A pseudo-random byte pattern for each stream, in which lost, duplicated and reordered bytes show.

use std::io::{self, Read, Write};

/// The default size of a write or read, in bytes.
pub const LARGE: usize = 64 * 1024;

/// A summary of the received bytes of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// The number of bytes.
    pub bytes: u64,
    /// Their CRC-32.
    pub checksum: u32,
}

/// Returns the first `bytes` bytes of stream number `stream`, in pieces of at most [`LARGE`] bytes.
pub fn pieces(stream: u64, bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut left = bytes;
    std::iter::from_fn(move || {
        let size = usize::try_from(left).unwrap_or(LARGE).min(LARGE);
        left -= size as u64;
        let mut piece = Vec::with_capacity(LARGE);
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

/// Returns the summary of a stream that arrives intact.
#[must_use]
pub fn expected(stream: u64, bytes: u64) -> Arrived {
    let mut checksum = crc32fast::Hasher::new();
    pieces(stream, bytes).for_each(|piece| checksum.update(&piece));
    Arrived { bytes, checksum: checksum.finalize() }
}

/// Sends the first `bytes` bytes of a stream.
///
/// # Errors
///
/// The error of a write.
pub fn send(to: impl Write, stream: u64, bytes: u64) -> io::Result<()> {
    send_in_pieces(to, stream, bytes, LARGE)
}

/// Sends the first `bytes` bytes of a stream in writes of at most `size` bytes.
///
/// # Errors
///
/// The error of a write.
pub fn send_in_pieces(mut to: impl Write, stream: u64, bytes: u64, size: usize) -> io::Result<()> {
    pieces(stream, bytes).try_for_each(|piece| piece.chunks(size).try_for_each(|part| to.write_all(part)))
}

/// Reads to the end of the stream.
///
/// # Errors
///
/// The error of a read.
pub fn receive(from: impl Read) -> io::Result<Arrived> {
    receive_in_pieces(from, LARGE)
}

/// Reads to the end of the stream, at most `size` bytes at a time.
///
/// # Errors
///
/// The error of a read.
pub fn receive_in_pieces(mut from: impl Read, size: usize) -> io::Result<Arrived> {
    let (mut checksum, mut bytes) = (crc32fast::Hasher::new(), 0);
    let mut chunk = vec![0; size];
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
    fn a_stream_arrives_intact_and_unlike_others() {
        for bytes in [0, 1, 7, 65_535, 65_536, 200_003] {
            let mut sent = Vec::new();
            send_in_pieces(&mut sent, 5, bytes, 999).unwrap();
            assert_eq!(receive_in_pieces(sent.as_slice(), 998).unwrap(), expected(5, bytes));
            assert_eq!(sent.len() as u64, bytes);
        }
        assert_ne!(expected(5, 100), expected(6, 100));
    }
}
