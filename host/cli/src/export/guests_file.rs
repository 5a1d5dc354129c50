//! A file with a guest a line.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::OFlags;

use super::file_watch::FileWatch;
use super::named_guest::{Guests, NamedGuest};

/// Bytes of the longest file.
const MAX_BYTES: u64 = 4 << 20;

/// Bytes of the longest line. The path of a socket has 107 at most.
const MAX_LINE: usize = 1024;

/// A file of lines `NAME=URI`; a line that begins with `#` is a comment.
#[derive(Debug)]
pub struct GuestsFile {
    pub watch: FileWatch,
}

impl GuestsFile {
    /// Watches the file's folder.
    ///
    /// # Errors
    ///
    /// If the path has no file name, or the folder cannot be watched.
    pub fn watch(path: &Path) -> Result<Self> {
        Ok(Self { watch: FileWatch::new(path)? })
    }

    /// Returns the guests if the file may have changed since the last call.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub fn changed(&self) -> Result<Option<Guests>> {
        self.watch.has_changed().then(|| self.read()).transpose()
    }

    /// Returns the guests.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or a line, which is named, is wrong.
    pub fn read(&self) -> Result<Guests> {
        let path = self.watch.path();
        let shown = path.display();
        let mut text = Vec::new();
        // What takes its place may be a FIFO, which is not waited for.
        let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.with_context(|| format!("cannot read the guests from {shown}"))?;
        // Of something else the end, or nothing yet, would be a list without guests.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        ensure!(is_file, "cannot read the guests from {shown}: it is not a regular file");
        let mut file = file.take(MAX_BYTES + 1);
        file.read_to_end(&mut text).with_context(|| format!("cannot read the guests from {shown}"))?;
        ensure!(file.limit() > 0, "{shown} is longer than {} MiB", MAX_BYTES >> 20);
        parse(&text).map_err(|(line, problem)| anyhow!("{shown}:{line}: {problem:#}"))
    }
}

/// Reads the lines; an error has the number of its line.
fn parse(text: &[u8]) -> Result<Guests, (usize, anyhow::Error)> {
    let mut guests = Guests::new();
    for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        let line = line.trim_ascii();
        if !line.is_empty() && !line.starts_with(b"#") {
            add(&mut guests, line).map_err(|problem| (number, problem))?;
        }
    }
    Ok(guests)
}

fn add(guests: &mut Guests, line: &[u8]) -> Result<()> {
    ensure!(line.len() <= MAX_LINE, "the line has {} bytes, and one may have {MAX_LINE}", line.len());
    let NamedGuest { name, endpoint } = NamedGuest::parse(OsStr::from_bytes(line))?;
    if guests.contains_key(&name) {
        bail!("another line names {name:?}");
    }
    guests.insert(name, endpoint);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_guest_a_comment_or_empty() {
        let guests = parse(b"# fleet\n\n  web = vsock://3\r\ndatabase=hybrid:/run/v=1.sock\nunix:/run/a#b\n").unwrap();
        let shown: Vec<String> = guests.iter().map(|(name, endpoint)| format!("{name} {endpoint}")).collect();
        assert_eq!(shown, ["database hybrid:/run/v=1.sock", "unix:/run/a#b unix:/run/a#b", "web vsock://3"]);
        assert!(parse(b"").unwrap().is_empty());
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line, named) in [
            (&b"web=vsock://3\nweb2=nowhere\n"[..], 2, "it has no scheme"),
            (b"#\n\nweb=vsock://3\nweb=vsock://4", 4, "another line names \"web\""),
            (b"web=vsock://x", 1, "vsock://x"),
            (&[b'x'; 3_000_000], 1, "the line has 3000000 bytes, and one may have 1024"),
        ] {
            let (at, problem) = parse(text).unwrap_err();
            assert!(at == line && problem.to_string().contains(named), "{at}: {problem}");
        }
    }
}
