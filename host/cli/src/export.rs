//! `scx-vsock export`: many guests' stats for Prometheus.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scx_vsock::Endpoint;
use scx_vsock::endpoint::ParseEndpointError;
use scx_vsock::export::Exporter;

use crate::duration;
use crate::signals::Signals;

/// Serve many guests' stats to Prometheus
///
/// A scrape of http://ADDR/metrics asks all guests at once, and has the numbers of those that answer in time; names,
/// labels and help are what each scheduler says that its stats mean. The label `guest` is NAME, else the URI.
///
/// scx_vsock_up is 0 for a guest without stats, which then has no other numbers, and
/// scx_vsock_missing_stats_total{guest,reason} counts why. A guest that comes back is found by the next scrape.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock export vsock://3 vsock://4 --listen 127.0.0.1:9729
  scx-vsock export web=vsock://3 database=hybrid:/run/guest2/v.sock
  curl http://127.0.0.1:9729/metrics

For Prometheus:
  scrape_configs:
    - job_name: scx-vsock
      static_configs: [{targets: ['127.0.0.1:9729']}]")]
pub struct Export {
    /// The guests' agents: vsock://CID[:PORT], hybrid:PATH[?port=N] or unix:PATH; or scx:PATH, a scheduler without one
    #[arg(required = true, value_name = "[NAME=]URI")]
    guests: Vec<Named>,

    /// Where to listen; with port 0 at a free one, which is printed
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9729")]
    listen: SocketAddr,

    /// The time that guests have for a scrape, in seconds or with a unit (250ms); less where the scraper says so
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,
}

/// A guest and its name.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    endpoint: Endpoint,
}

impl FromStr for Named {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        // A name has no colon, and a URI's first part no equals sign.
        let (name, uri) = match text.split_once('=') {
            Some((name, uri)) if !name.is_empty() && !name.contains(':') => (name, uri),
            _ => (text, text),
        };
        Ok(Self { name: name.to_owned(), endpoint: uri.parse()? })
    }
}

impl Export {
    /// Serves until a signal.
    pub fn run(&self) -> Result<ExitCode> {
        raise_descriptor_limit();
        let signals = Signals::take(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM])?;
        let listener = TcpListener::bind(self.listen)
            .with_context(|| format!("cannot listen on {} (choose another --listen ADDR)", self.listen))?;
        let at = listener.local_addr()?;
        let mut exporter = Exporter::new(listener)?.deadline(self.deadline);
        let mut names = BTreeSet::new();
        for Named { name, endpoint } in &self.guests {
            ensure!(names.insert(name), "two guests have the name {name:?}; give each its own as NAME=URI");
            exporter.add(name, endpoint.clone());
        }
        eprintln!("scx-vsock: the metrics of {} are at http://{at}/metrics", guests(self.guests.len()));
        exporter.run(&[signals.as_fd()])?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A descriptor is needed for each guest, and many systems give a process 1,024 unless it asks for more.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without it, guests that have none say so.
    let _raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn guests(count: usize) -> String {
    if count == 1 { "one guest".to_owned() } else { format!("{count} guests") }
}
