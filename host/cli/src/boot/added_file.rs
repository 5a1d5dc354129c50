//! A file of this host that the guest has as well.

use std::path::{Path, PathBuf};

/// A file of this host, and its path in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedFile {
    /// Its path on this host.
    pub from: PathBuf,
    /// Its path in the guest, from the root.
    pub to: String,
}

impl AddedFile {
    /// Reads `FILE` or `FILE=PATH`; the guest has a program below `/usr/bin` by default.
    pub fn program(text: &str) -> Result<Self, String> {
        Self::parse(text, "/usr/bin")
    }

    /// Reads `FILE` or `FILE=PATH`; the guest has a file in its root by default.
    pub fn file(text: &str) -> Result<Self, String> {
        Self::parse(text, "")
    }

    fn parse(text: &str, folder: &str) -> Result<Self, String> {
        // A file whose name has the sign is named with both paths.
        let (from, to) = match text.rsplit_once('=') {
            Some((from, to)) => (from, to.to_owned()),
            None => {
                let name = Path::new(text).file_name().and_then(|name| name.to_str());
                (text, format!("{folder}/{}", name.ok_or("it has no file name")?))
            }
        };
        if from.is_empty() || !to.starts_with('/') || to.ends_with('/') {
            return Err("write it as FILE, or as FILE=PATH with a path of the guest that begins with a slash".into());
        }
        Ok(Self { from: from.into(), to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_with_its_path_in_the_guest_or_has_a_default() {
        let read = |text: &str| AddedFile::program(text).map(|added| (added.from, added.to)).unwrap();
        assert_eq!(read("./a/load"), ("./a/load".into(), "/usr/bin/load".into()));
        assert_eq!(read("a=b=/c"), ("a=b".into(), "/c".into()));
        assert_eq!(AddedFile::file("data/x").unwrap().to, "/x");
        for wrong in ["", "/", "..", "=", "=/a", "a=", "a=b", "a=/b/"] {
            assert!(AddedFile::program(wrong).is_err(), "{wrong}");
        }
    }
}
