//! `scx-vsock export`: the stats of many guests for Prometheus.

mod file_watch;
mod folder_watch;
mod guest_list;
mod guests_file;
mod guests_folder;
mod named_guest;
mod web_config_file;

use std::io;
use std::iter;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use scx_vsock::export::{Exporter, MIN_INTERVAL};

use crate::descriptor_limit;
use crate::duration;
use crate::output;
use crate::output::eprintln;
use crate::sandbox;
use crate::signals::Signals;
use crate::target::uris_help;
use guest_list::GuestList;
use guests_file::GuestsFile;
use guests_folder::GuestsFolder;
use named_guest::NamedGuest;
use web_config_file::WebConfigFile;

/// Export the stats of many guests to Prometheus
///
/// Guests are read at an interval, and http://ADDR/metrics has what they answered last. Metric names, labels and help come
/// from each scheduler's description of its stats. The label guest is NAME if there is one, else the URI.
///
/// Schedulers report many numbers as deltas since the last read. For each number of the kind u64 there is a counter beside
/// the gauge, NAME_accumulated_total, which adds up what was read: its increase between two scrapes does not depend on
/// other scrapers.
///
/// For a guest without stats, scx_vsock_up is 0 and scx_vsock_missing_stats_total{guest,reason} counts the reason. Each
/// read tries it again.
///
/// Once it listens, the process keeps only the system calls that it needs: another one ends it, with a message.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock export vsock://3 vsock://4 --listen 127.0.0.1:9729
  scx-vsock export web=vsock://3 database=hybrid:/run/guest2/v.sock
  scx-vsock export --guests /etc/scx-vsock/guests
  scx-vsock export --guests-dir /run/guests
  scx-vsock export --guests /etc/scx-vsock/guests --listen :9729 --web.config.file /etc/scx-vsock/web.yml
  scx-vsock export --print alerts
  curl http://127.0.0.1:9729/metrics

Configuration of Prometheus:
  scrape_configs:
    - job_name: scx-vsock
      static_configs: [{targets: ['127.0.0.1:9729']}]")]
pub struct Export {
    #[arg(
        required_unless_present_any = ["guests_file", "guests_dir", "print"],
        value_name = "[NAME=]URI",
        help = uris_help(),
        value_parser = NamedGuest::parser()
    )]
    guests: Vec<NamedGuest>,

    /// A file with further guests, NAME=URI a line, and comments after #; it is read again when it changes
    ///
    /// A wrong line is reported with its number, and leaves the guests as they were.
    #[arg(long = "guests", value_name = "FILE")]
    guests_file: Option<PathBuf>,

    /// A folder with the hybrid sockets of further guests; each guest has its socket's name, and comes and goes with it
    ///
    /// A socket with another one's name and _PORT after it is a host program's, and no guest.
    #[arg(long, value_name = "DIR")]
    guests_dir: Option<PathBuf>,

    /// The address to listen on: HOST:PORT, or :PORT for every address of this host; port 0 takes a free port, which is printed
    ///
    /// Without --web.config.file, anyone who can connect to it reads everything in the clear: the names of guests, the
    /// stats of their schedulers, and the names of layers, cgroups and tasks in them.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9729", value_parser = parse_listen)]
    listen: String,

    /// A file with TLS and basic authentication in the format of Prometheus' exporters; read again when it, its certificate or its key changes
    ///
    /// Of tls_server_config it may have cert_file, key_file, cert, key, client_auth_type (NoClientCert or
    /// RequireAndVerifyClientCert), client_ca_file, client_ca, min_version and max_version (TLS12 or TLS13); of
    /// http_server_config, http2, which changes nothing; and basic_auth_users with bcrypt hashes. Other keys are errors.
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config: Option<PathBuf>,

    /// The time from one read of a guest to the next, in seconds or with a unit (250ms); 100ms at least
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = parse_interval)]
    interval: Duration,

    /// How long a guest may take to answer, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// Read what each guest's kernel says about sched_ext as well: its state, the scheduler's name, and counters that go on
    /// across schedulers; also for schedulers that serve no stats
    #[arg(long)]
    kernel: bool,

    /// Print alerting rules for Prometheus, or a dashboard for Grafana, and exit
    #[arg(long, value_name = "EXAMPLE", exclusive = true)]
    print: Option<Example>,

    /// Keep all system calls, for a debugger
    #[arg(long)]
    no_sandbox: bool,
}

/// What can be printed, for the metrics that every guest has.
#[derive(Clone, Copy, ValueEnum)]
enum Example {
    Alerts,
    Dashboard,
}

impl Example {
    fn text(self) -> &'static str {
        match self {
            Self::Alerts => include_str!("../files/alerts.yml"),
            Self::Dashboard => include_str!("../files/dashboard.json"),
        }
    }
}

impl Export {
    /// Serves until a signal asks it to end.
    pub fn run(&self) -> Result<ExitCode> {
        if let Some(example) = self.print {
            output::print(example.text())?;
            return Ok(ExitCode::SUCCESS);
        }
        descriptor_limit::raise();
        let signals = Signals::block(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM])?;
        let listener = listen(&self.listen)
            .map_err(|error| anyhow!("cannot listen on {}: {error}; choose another --listen HOST:PORT", self.listen))?;
        let address = listener.local_addr()?;
        let mut exporter = Exporter::new(listener)?.deadline(self.deadline).interval(self.interval);
        if self.kernel {
            exporter = exporter.kernel();
        }
        let mut guests = self.guest_list()?;
        let count = guests.apply(&mut exporter).unwrap_or(0);
        let web_config = self.web_config.as_deref().map(|path| WebConfigFile::read(path, &mut exporter)).transpose()?;
        let (web_config, has_tls) = web_config.unzip();
        let scheme = if has_tls == Some(true) { "https" } else { "http" };
        eprintln!("scx-vsock: serving the stats of {} at {scheme}://{address}/metrics", counted(count));
        if !self.no_sandbox {
            sandbox::enter()?;
        }
        serve(&mut exporter, &signals, &mut guests, web_config)
    }

    fn guest_list(&self) -> Result<GuestList> {
        let file = self.guests_file.as_deref().map(GuestsFile::watch).transpose()?;
        let folder = self.guests_dir.as_deref().map(GuestsFolder::watch).transpose()?;
        GuestList::new(&self.guests, file, folder)
    }
}

/// Serves until a signal asks it to end, and follows the changes of guests and of the web configuration.
fn serve(
    exporter: &mut Exporter,
    signals: &Signals,
    guests: &mut GuestList,
    mut web_config: Option<WebConfigFile>,
) -> Result<ExitCode> {
    loop {
        let files = web_config.iter().flat_map(WebConfigFile::watches);
        let events: Vec<BorrowedFd<'_>> = iter::once(signals.as_fd()).chain(guests.watches()).chain(files).collect();
        if exporter.run(&events)? == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        guests.refresh();
        if let Some(count) = guests.apply(exporter) {
            eprintln!("scx-vsock: serving the stats of {}", counted(count));
        }
        if let Some(web_config) = &mut web_config {
            web_config.refresh(exporter);
        }
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < MIN_INTERVAL { Err(format!("the least is {} ms", MIN_INTERVAL.as_millis())) } else { Ok(interval) }
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

fn counted(count: usize) -> String {
    if count == 1 { "1 guest".to_owned() } else { format!("{count} guests") }
}
