//! The reason of a kernel's panic, as it is on the console.

/// What the kernel prints before it.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";

/// The most bytes of the reason that are kept.
const MAX_REASON: usize = 200;

/// Looks for a panic in a console's output. Any process of the guest that may write there can feign one.
#[derive(Clone, Debug)]
pub(super) enum PanicWatch {
    /// So many bytes of [`PANIC`] were the last ones.
    Matching(usize),
    /// The reason is being printed.
    Reason(Vec<u8>),
    /// It was printed.
    Seen(String),
}

/// A watch of a console without output.
impl Default for PanicWatch {
    fn default() -> Self {
        Self::Matching(0)
    }
}

impl PanicWatch {
    /// Takes the next output.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.take_byte(byte));
    }

    fn take_byte(&mut self, byte: u8) {
        match self {
            Self::Matching(matched) if PANIC.get(*matched) == Some(&byte) => {
                *matched += 1;
                if *matched == PANIC.len() {
                    *self = Self::Reason(Vec::new());
                }
            }
            // Its first byte comes nowhere else in it.
            Self::Matching(matched) => *matched = usize::from(PANIC.first() == Some(&byte)),
            Self::Reason(reason) if matches!(byte, b'\r' | b'\n') || reason.len() == MAX_REASON => {
                *self = Self::Seen(String::from_utf8_lossy(reason).into_owned());
            }
            Self::Reason(reason) => reason.push(byte),
            Self::Seen(_) => {}
        }
    }

    /// Returns the panic's reason.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Matching(_) => None,
            Self::Reason(reason) => Some(String::from_utf8_lossy(reason).into_owned()),
            Self::Seen(reason) => Some(reason.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(pieces: &[&[u8]]) -> Option<String> {
        let mut watch = PanicWatch::default();
        pieces.iter().for_each(|piece| watch.take(piece));
        watch.reason()
    }

    #[test]
    fn the_reason_of_the_first_panic_is_kept() {
        let pieces =
            [&b"[ 1.0] KKernel pa"[..], b"nic - not syncing: VFS: no root\r\n", b"Kernel panic - not syncing: x\n"];
        assert_eq!(reason(&pieces).unwrap(), "VFS: no root");
        assert_eq!(reason(&[PANIC, b"no line end"]).unwrap(), "no line end");
        assert_eq!(reason(&[b"Kernel panic - not Kernel panic"]), None);
    }

    #[test]
    fn a_reason_is_bounded() {
        assert_eq!(reason(&[PANIC, &[b'x'; 10_000]]).unwrap().len(), MAX_REASON);
    }
}
