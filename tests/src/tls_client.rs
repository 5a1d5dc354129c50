//! A scraper under TLS.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::agent::repository;
use crate::exporter::{Response, parse_response};
use crate::peer::DEADLINE;

/// The path of a certificate or a key of `tests/data/tls`: `server` and `other`, each for `localhost` and 127.0.0.1.
#[must_use]
pub fn pem(name: &str) -> PathBuf {
    repository().join("tests/data/tls").join(name)
}

/// Sends a GET request for the metrics with these additional headers to a server with this certificate, in one of these
/// versions of TLS.
///
/// # Errors
///
/// Why there is no response: the server is not trusted, or closes before it has sent one.
///
/// # Panics
///
/// When the certificate cannot be read, or nobody listens.
pub fn get(
    at: SocketAddr,
    trusted: &str,
    headers: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<Response> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem(trusted)).expect("a certificate")).expect("one that can be a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(versions).expect("versions").with_root_certificates(roots);
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(at)?;
    tcp.set_read_timeout(Some(DEADLINE))?;
    let mut stream = StreamOwned::new(connection, tcp);
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {at}\r\n{headers}\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(parse_response(&text))
}
