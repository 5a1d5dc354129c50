//! The arguments that QEMU needs for the vsock device, for a shell.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Characters that a shell acts on, in the output of an unquoted `$(...)` or under `eval`. None of them is in the
/// arguments but for the path.
const SPECIAL: &[u8] = b" \t\n\r'\"\\$`*?[]{}()<>|&;#~!^";

/// The arguments of one device.
pub struct QemuArguments(Vec<Vec<u8>>);

impl QemuArguments {
    /// The arguments for the device at this socket and, where a size is given, for shared memory.
    ///
    /// # Errors
    ///
    /// A relative path, where the current folder is gone.
    pub fn new(socket: &Path, memory_mib: Option<u32>) -> io::Result<Self> {
        let mut arguments = Vec::new();
        if let Some(mib) = memory_mib {
            let memory = format!("memory-backend-memfd,id=scx-vsock-memory,size={mib}M,share=on");
            let words = ["-m", &format!("{mib}M"), "-object", &memory, "-numa", "node,memdev=scx-vsock-memory"];
            arguments.extend(words.map(|word| word.as_bytes().to_vec()));
        }
        let mut chardev = b"socket,id=scx-vsock,path=".to_vec();
        for &byte in std::path::absolute(socket)?.as_os_str().as_bytes() {
            // QEMU reads two commas as one that is part of a value.
            chardev.extend_from_slice(if byte == b',' { b",," } else { std::slice::from_ref(&byte) });
        }
        arguments.extend([b"-chardev".to_vec(), chardev]);
        arguments.extend(["-device", "vhost-user-vsock-pci,chardev=scx-vsock"].map(|word| word.as_bytes().to_vec()));
        Ok(Self(arguments))
    }

    /// Whether the line has quotes, so that a shell must evaluate it.
    pub fn need_quotes(&self) -> bool {
        self.0.iter().any(|argument| needs_quotes(argument))
    }

    /// The arguments on one line. Those without a character that a shell acts on are not quoted, so that the line can be
    /// used as `$(...)`.
    ///
    /// # Errors
    ///
    /// An argument cannot be quoted, since it has a NUL.
    pub fn line(&self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        for argument in &self.0 {
            if !line.is_empty() {
                line.push(b' ');
            }
            if needs_quotes(argument) {
                let quoted = shlex::bytes::try_quote(argument).context("cannot quote the path of the socket")?;
                line.extend_from_slice(&quoted);
            } else {
                line.extend_from_slice(argument);
            }
        }
        Ok(line)
    }
}

fn needs_quotes(argument: &[u8]) -> bool {
    argument.iter().any(|byte| SPECIAL.contains(byte) || byte.is_ascii_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn line(path: &[u8]) -> (Vec<u8>, bool) {
        let arguments = QemuArguments::new(OsStr::from_bytes(path).as_ref(), None).unwrap();
        (arguments.line().unwrap(), arguments.need_quotes())
    }

    #[test]
    fn every_path_survives_a_shell() {
        for path in [
            &b"/tmp/g1"[..],
            b"/a b/c",
            b"/it's",
            b"/\"q\"",
            b"/$(x)`y`",
            b"/*?[a]",
            b"/\\n",
            b"/\xff\xfe",
            b"/!^#~",
            b"/a\nb",
        ] {
            let (line, _) = line(path);
            let words = shlex::bytes::split(&line).unwrap();
            let expected = [b"socket,id=scx-vsock,path=".to_vec(), path.to_vec()].concat();
            assert_eq!(words.get(1), Some(&expected));
            assert_eq!(words.len(), 4);
        }
    }

    #[test]
    fn plain_paths_have_no_quotes() {
        let device = "-chardev socket,id=scx-vsock,path=/tmp/g,,1 -device vhost-user-vsock-pci,chardev=scx-vsock";
        assert_eq!(line(b"/tmp/g,1"), (device.as_bytes().to_vec(), false));
        assert!(line(b"/a b").1);
    }
}
