//! A guest with the name that its series have.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use clap::builder::{OsStringValueParser, TypedValueParser};
use scx_vsock::Endpoint;
use scx_vsock::endpoint::ParseEndpointError;

/// Guests by their names.
pub type Guests = BTreeMap<String, Endpoint>;

/// A guest with a name.
#[derive(Clone, Debug)]
pub struct NamedGuest {
    /// The value of the label `guest`.
    pub name: String,
    /// Where its agent is.
    pub endpoint: Endpoint,
}

impl NamedGuest {
    /// Reads `[NAME=]URI`, whose path need not be UTF-8. Without a name it has the URI as its name.
    pub fn parse(text: &OsStr) -> Result<Self, ParseEndpointError> {
        let bytes = text.as_bytes();
        let is_name = |name: &&str| !name.is_empty() && !name.contains(':');
        let (name, uri) = bytes.split_at(bytes.iter().position(|&byte| byte == b'=').unwrap_or(0));
        // A name has no colon, and the scheme of a URI has no equals sign.
        match (str::from_utf8(name).ok().map(str::trim_end).filter(is_name), uri.strip_prefix(b"=")) {
            (Some(name), Some(uri)) => {
                let uri = OsStr::from_bytes(uri.trim_ascii_start());
                Ok(Self { name: name.to_owned(), endpoint: Endpoint::try_from(uri)? })
            }
            _ => Ok(Self { name: text.to_string_lossy().into_owned(), endpoint: Endpoint::try_from(text)? }),
        }
    }

    /// The parser of an argument.
    pub fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| Self::parse(&text))
    }
}
