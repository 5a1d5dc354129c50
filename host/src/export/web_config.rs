//! Prometheus' web configuration file: TLS and basic authentication for those who scrape.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use saphyr::{LoadableYamlNode, Scalar, ScanError, Yaml};
use serde::Deserialize;
use serde_json::Value;

use super::passwords::Users;

/// The greatest cost of a bcrypt hash. Each step doubles the time of a check; 14 takes about a second.
const MAX_COST: u32 = 14;

/// What a web configuration file says, with the certificates and the key that it names.
///
/// Of the format of Prometheus' exporters these keys are known, and others are errors: `tls_server_config` with `cert_file`,
/// `key_file`, `cert`, `key`, `client_auth_type` (`NoClientCert` and `RequireAndVerifyClientCert`), `client_ca_file`,
/// `client_ca`, `min_version` and `max_version` (`TLS12` and `TLS13`); `http_server_config` with `http2`, which changes
/// nothing, since this is HTTP/1.1; `basic_auth_users` with bcrypt hashes.
///
/// ```
/// # let folder = std::env::temp_dir().join(format!("scx-vsock-web-config-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("web.yml");
/// use scx_vsock::export::WebConfig;
///
/// std::fs::write(&path, "basic_auth_users: {alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze}")?;
/// let config = WebConfig::read(&path)?;
/// assert!(config.has_users() && !config.has_tls());
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct WebConfig {
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) users: Users,
    files: Vec<PathBuf>,
}

/// Why a web configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no YAML.
    #[error("not YAML: {0}")]
    Yaml(#[from] ScanError),
    /// The file has another form than a web configuration.
    #[error("not a web configuration: {0}")]
    Form(#[from] serde_json::Error),
    /// A key in the file is no text, or there are several documents.
    #[error("not a web configuration: it must be one document whose keys are texts")]
    Keys,
    /// Something is there without what it needs, or twice.
    #[error("{0}")]
    Incomplete(&'static str),
    /// A certificate or key is not PEM.
    #[error("no {what} as PEM: {source}")]
    Pem {
        /// What it was to be.
        what: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// The certificate, the key or the versions cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificates of clients cannot be verified.
    #[error("client_ca: {0}")]
    ClientCa(#[from] VerifierBuilderError),
    /// A user's password is no bcrypt hash, or one of too great a cost.
    #[error("the password of {user:?} is no bcrypt hash of a cost up to {MAX_COST}")]
    Hash {
        /// The user.
        user: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tls_server_config: Option<TlsSection>,
    #[allow(dead_code, reason = "known, and changes nothing")]
    http_server_config: Option<HttpSection>,
    basic_auth_users: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpSection {
    #[allow(dead_code, reason = "known, and changes nothing")]
    http2: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    cert_file: Option<PathBuf>,
    cert: Option<String>,
    key_file: Option<PathBuf>,
    key: Option<String>,
    client_ca_file: Option<PathBuf>,
    client_ca: Option<String>,
    #[serde(default)]
    client_auth_type: ClientAuth,
    min_version: Option<Version>,
    max_version: Option<Version>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
enum ClientAuth {
    #[default]
    NoClientCert,
    RequireAndVerifyClientCert,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[allow(clippy::upper_case_acronyms, reason = "as the file has them")]
enum Version {
    TLS12,
    TLS13,
}

impl WebConfig {
    /// Reads a file, and those that it names, relative to its own folder.
    ///
    /// # Errors
    ///
    /// If it is not what it must be, or cannot be used.
    pub fn read(path: &Path) -> Result<Self, WebConfigError> {
        let text = read(path)?;
        let file: File = serde_json::from_value(parse(&text)?)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut config = Self { files: vec![path.to_owned()], ..Self::default() };
        if let Some(section) = &file.tls_server_config {
            config.tls = Some(Arc::new(config.server_config(section, folder)?));
        }
        config.users = file.basic_auth_users.unwrap_or_default();
        config.users.iter().try_for_each(|(user, hash)| check_hash(user, hash))?;
        Ok(config)
    }

    /// Whether connections are encrypted.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether scrapers must authenticate themselves.
    #[must_use]
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// Returns the files that were read: when one changes, the configuration should be read again.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn server_config(&mut self, section: &TlsSection, folder: &Path) -> Result<ServerConfig, WebConfigError> {
        let certificate = self.pem(section.cert.as_ref(), section.cert_file.as_ref(), folder)?;
        let key = self.pem(section.key.as_ref(), section.key_file.as_ref(), folder)?;
        let client_ca = self.pem(section.client_ca.as_ref(), section.client_ca_file.as_ref(), folder)?;
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return Err(WebConfigError::Incomplete("tls_server_config needs cert_file and key_file, or cert and key"));
        };
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&versions(section)?)?;
        let builder = match (section.client_auth_type, client_ca) {
            (ClientAuth::NoClientCert, None) => builder.with_no_client_auth(),
            (ClientAuth::RequireAndVerifyClientCert, Some(client_ca)) => {
                let mut roots = RootCertStore::empty();
                certificates(&client_ca)?.into_iter().try_for_each(|root| roots.add(root))?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
            _ => {
                return Err(WebConfigError::Incomplete(
                    "client_ca_file and client_auth_type RequireAndVerifyClientCert need each other",
                ));
            }
        };
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|source| WebConfigError::Pem { what: "key", source })?;
        Ok(builder.with_single_cert(certificates(&certificate)?, key)?)
    }

    /// What is in the file itself, or in another one.
    fn pem(
        &mut self,
        text: Option<&String>,
        file: Option<&PathBuf>,
        folder: &Path,
    ) -> Result<Option<Vec<u8>>, WebConfigError> {
        match (text, file) {
            (None, None) => Ok(None),
            (Some(text), None) => Ok(Some(text.clone().into_bytes())),
            (None, Some(file)) => {
                let path = folder.join(file);
                let pem = read(&path)?.into_bytes();
                self.files.push(path);
                Ok(Some(pem))
            }
            (Some(_), Some(_)) => Err(WebConfigError::Incomplete("a text and a file for the same are one too many")),
        }
    }
}

fn read(path: &Path) -> Result<String, WebConfigError> {
    fs::read_to_string(path).map_err(|source| WebConfigError::Read { path: path.to_owned(), source })
}

/// The one document of a YAML text, as JSON. An empty text is an empty document.
fn parse(text: &str) -> Result<Value, WebConfigError> {
    match Yaml::load_from_str(text)?.as_slice() {
        [] => Ok(Value::Object(serde_json::Map::new())),
        [document] => to_json(document).ok_or(WebConfigError::Keys),
        _ => Err(WebConfigError::Keys),
    }
}

fn to_json(node: &Yaml<'_>) -> Option<Value> {
    match node {
        Yaml::Value(Scalar::Null) => Some(Value::Null),
        Yaml::Value(Scalar::Boolean(value)) => Some(Value::from(*value)),
        Yaml::Value(Scalar::Integer(value)) => Some(Value::from(*value)),
        Yaml::Value(Scalar::FloatingPoint(value)) => Some(Value::from(value.into_inner())),
        Yaml::Value(Scalar::String(text)) => Some(Value::from(&**text)),
        Yaml::Sequence(items) => items.iter().map(to_json).collect(),
        Yaml::Mapping(entries) => {
            let entry = |(key, value): (&Yaml<'_>, &Yaml<'_>)| Some((key.as_str()?.to_owned(), to_json(value)?));
            entries.iter().map(entry).collect::<Option<serde_json::Map<_, _>>>().map(Value::Object)
        }
        _ => None,
    }
}

fn versions(section: &TlsSection) -> Result<Vec<&'static SupportedProtocolVersion>, WebConfigError> {
    let (least, most) = (section.min_version.unwrap_or(Version::TLS12), section.max_version.unwrap_or(Version::TLS13));
    let all = [(Version::TLS13, &TLS13), (Version::TLS12, &TLS12)];
    let versions: Vec<_> =
        all.into_iter().filter(|(version, _)| (least..=most).contains(version)).map(|(_, its)| its).collect();
    if versions.is_empty() { Err(WebConfigError::Incomplete("min_version is above max_version")) } else { Ok(versions) }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, WebConfigError> {
    let of_pem = |source| WebConfigError::Pem { what: "certificate", source };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(of_pem)?;
    if certificates.is_empty() { Err(of_pem(pem::Error::NoItemsFound)) } else { Ok(certificates) }
}

fn check_hash(user: &str, hash: &str) -> Result<(), WebConfigError> {
    let parts: Option<bcrypt::HashParts> = hash.parse().ok();
    if parts.is_some_and(|parts| parts.get_cost() <= MAX_COST) {
        Ok(())
    } else {
        Err(WebConfigError::Hash { user: user.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze";

    fn config(text: &str) -> Result<WebConfig, WebConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        fs::write(&path, text).unwrap();
        WebConfig::read(&path)
    }

    #[test]
    fn users_have_hashes() {
        let of = config(&format!("# users\nbasic_auth_users:\n  alice: {HASH}\n  \"bob\": '{HASH}'\n")).unwrap();
        assert!(of.has_users() && !of.has_tls() && of.users.len() == 2);
        let nothing = config("").unwrap();
        assert!(!nothing.has_users() && !nothing.has_tls());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, named) in [
            ("tls_server_confg: {}".to_owned(), "unknown field `tls_server_confg`"),
            ("tls_server_config: {cipher_suites: [x]}".to_owned(), "unknown field `cipher_suites`"),
            ("tls_server_config: {min_version: TLS10}".to_owned(), "unknown variant `TLS10`"),
            ("tls_server_config: {cert: x}".to_owned(), "needs cert_file and key_file"),
            ("tls_server_config: {cert: x, cert_file: y}".to_owned(), "one too many"),
            ("tls_server_config: {cert: x, key: y}".to_owned(), "no key as PEM"),
            ("tls_server_config: {cert_file: nothing, key: y}".to_owned(), "nothing: No such file"),
            (
                "tls_server_config: {cert: x, key: y, client_auth_type: RequireAnyClientCert}".to_owned(),
                "RequireAnyClientCert",
            ),
            ("tls_server_config: {cert: x, key: y, client_ca: z}".to_owned(), "need each other"),
            ("tls_server_config: {cert: x, key: y, min_version: TLS13, max_version: TLS12}".to_owned(), "above"),
            ("http_server_config: {headers: {}}".to_owned(), "unknown field `headers`"),
            ("basic_auth_users: {alice: secret}".to_owned(), "the password of \"alice\" is no bcrypt hash"),
            (
                format!("basic_auth_users: {{alice: {}}}", HASH.replace("$10$", "$15$")),
                "no bcrypt hash of a cost up to 14",
            ),
            ("basic_auth_users: {1: x}".to_owned(), "keys are texts"),
            ("a: b\n---\nc: d".to_owned(), "one document"),
            ("a: [".to_owned(), "not YAML"),
        ] {
            let error = config(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
