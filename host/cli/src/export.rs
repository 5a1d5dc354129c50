//! `scx-vsock export`: the stats of many guests for Prometheus.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use nix::sys::signal::Signal;
use scx_vsock::Endpoint;
use scx_vsock::endpoint::ParseEndpointError;
use scx_vsock::export::Exporter;

use crate::descriptor_limit;
use crate::duration;
use crate::error_report::wrong_arguments;
use crate::output::eprintln;
use crate::sandbox;
use crate::signals::Signals;
use crate::target::uris_help;

/// Export the stats of many guests to Prometheus
///
/// A scrape of http://ADDR/metrics asks all guests at once and returns the stats of those that answer in time. Metric
/// names, labels and help come from each scheduler's description of its stats. The label guest is NAME if there is
/// one, else the URI.
///
/// For a guest without stats, scx_vsock_up is 0 and scx_vsock_missing_stats_total{guest,reason} counts the reason. Each
/// scrape tries it again.
///
/// Once it listens, the process keeps only the system calls that it needs: another one ends it, with a message.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock export vsock://3 vsock://4 --listen 127.0.0.1:9729
  scx-vsock export web=vsock://3 database=hybrid:/run/guest2/v.sock
  curl http://127.0.0.1:9729/metrics

Configuration of Prometheus:
  scrape_configs:
    - job_name: scx-vsock
      static_configs: [{targets: ['127.0.0.1:9729']}]")]
pub struct Export {
    #[arg(required = true, value_name = "[NAME=]URI", help = uris_help(), value_parser = named_parser())]
    guests: Vec<Named>,

    /// The address to listen on: HOST:PORT, or :PORT for every address of this host; port 0 takes a free port, which is printed
    ///
    /// Anyone who can connect to it can read the stats: there is neither TLS nor authentication.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9729", value_parser = parse_listen)]
    listen: String,

    /// How long a scrape waits for guests, in seconds or with a unit (250ms); a shorter scrape timeout of Prometheus takes precedence
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// Keep all system calls, for a debugger
    #[arg(long)]
    no_sandbox: bool,
}

/// A guest with a name.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    endpoint: Endpoint,
}

impl Named {
    /// Reads `[NAME=]URI`, whose path need not be UTF-8.
    fn parse(text: &OsStr) -> Result<Self, ParseEndpointError> {
        let bytes = text.as_bytes();
        let is_name = |name: &&str| !name.is_empty() && !name.contains(':');
        let (name, uri) = bytes.split_at(bytes.iter().position(|&byte| byte == b'=').unwrap_or(0));
        // A name has no colon, and the scheme of a URI has no equals sign.
        match (str::from_utf8(name).ok().filter(is_name), uri.strip_prefix(b"=")) {
            (Some(name), Some(uri)) => {
                Ok(Self { name: name.to_owned(), endpoint: Endpoint::try_from(OsStr::from_bytes(uri))? })
            }
            _ => Ok(Self { name: text.to_string_lossy().into_owned(), endpoint: Endpoint::try_from(text)? }),
        }
    }
}

fn named_parser() -> impl TypedValueParser<Value = Named> {
    OsStringValueParser::new().try_map(|text| Named::parse(&text))
}

impl Export {
    /// Serves until a signal asks it to end.
    pub fn run(&self) -> Result<ExitCode> {
        descriptor_limit::raise();
        let signals = Signals::block(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM])?;
        let listener = listen(&self.listen)
            .map_err(|error| anyhow!("cannot listen on {}: {error}; choose another --listen HOST:PORT", self.listen))?;
        let address = listener.local_addr()?;
        let mut exporter = Exporter::new(listener)?.deadline(self.deadline);
        let mut names = BTreeSet::new();
        for Named { name, endpoint } in &self.guests {
            if !names.insert(name) {
                let message =
                    format_args!("two guests are named {name:?}; give each a name of its own, as in NAME=URI");
                return Err(wrong_arguments(message));
            }
            exporter.add(name, endpoint.clone());
        }
        eprintln!("scx-vsock: serving the stats of {} at http://{address}/metrics", guests(self.guests.len()));
        if !self.no_sandbox {
            sandbox::enter()?;
        }
        exporter.run(&[signals.as_fd()])?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Checks the form of an address. What its host is, the system says when it listens.
fn parse_listen(address: &str) -> Result<String, &'static str> {
    let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if matches!(port, Some(Ok(_))) { Ok(address.to_owned()) } else { Err("write HOST:PORT or :PORT") }
}

/// Listens on an address as users of exporters write it.
fn listen(address: &str) -> io::Result<TcpListener> {
    match address.strip_prefix(':') {
        // The first takes IPv4 as well, unless the host has no IPv6.
        Some(port) => TcpListener::bind(format!("[::]:{port}")).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => Err(error),
            _ => TcpListener::bind(format!("0.0.0.0:{port}")),
        }),
        None => TcpListener::bind(address),
    }
}

fn guests(count: usize) -> String {
    if count == 1 { "1 guest".to_owned() } else { format!("{count} guests") }
}
