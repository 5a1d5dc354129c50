//! A running `scx-vsock export`, and the parsed result of scraping it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::peer::DEADLINE;

/// A running exporter. Ends on drop, which must be orderly.
#[derive(Debug)]
pub struct Exporter {
    child: Child,
    at: SocketAddr,
    messages: Mutex<Receiver<String>>,
}

impl Exporter {
    /// Starts a command with `--listen` added, and waits until it listens.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn start(command: Command) -> Self {
        Self::start_at(command, "127.0.0.1:0")
    }

    /// Starts a command that is to listen there, and waits until it does.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn start_at(mut command: Command, listen: &str) -> Self {
        let mut child = command.args(["--listen", listen]).stderr(Stdio::piped()).spawn().expect("the exporter starts");
        let mut line = String::new();
        let mut messages = BufReader::new(child.stderr.take().expect("piped"));
        messages.read_line(&mut line).expect("text");
        let at = line.split_once("://").and_then(|(_, at)| at.trim_end().strip_suffix("/metrics"));
        let at = at.unwrap_or_else(|| panic!("it printed {line:?}"));
        let (sender, later) = channel();
        thread::spawn(move || messages.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, at: at.parse().expect("an address"), messages: Mutex::new(later) }
    }

    /// Returns the address where it listens.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// Connects to it.
    ///
    /// # Panics
    ///
    /// When it cannot be connected.
    #[must_use]
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a stream takes a time-out");
        stream
    }

    /// Connects to it from another address of this host, as another host would.
    ///
    /// # Panics
    ///
    /// When it cannot be connected.
    #[must_use]
    pub fn connect_from(&self, address: [u8; 4]) -> TcpStream {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        bind(&socket, &SocketAddr::from((address, 0))).expect("an address of this host");
        rustix::net::connect(&socket, &self.at).expect("it listens");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).expect("a stream takes a time-out");
        stream
    }

    /// Scrapes as Prometheus does.
    ///
    /// # Panics
    ///
    /// When the exposition is not valid OpenMetrics.
    #[must_use]
    pub fn scrape(&self) -> Metrics {
        let response = get(self.at, "/metrics", "Accept: application/openmetrics-text\r\n");
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
        assert!(
            response.head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
            "{}",
            response.head
        );
        Metrics::parse(&response.body)
    }

    /// Scrapes again and again, as Prometheus does, until a page is as wanted. Returns that page.
    ///
    /// # Panics
    ///
    /// When none is in time.
    pub fn scrape_until(&self, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        let until = Instant::now() + DEADLINE;
        loop {
            let page = self.scrape();
            if wanted(&page) {
                return page;
            }
            assert!(Instant::now() < until, "{page:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the next line that it prints.
    ///
    /// # Panics
    ///
    /// When there is none in time.
    #[must_use]
    pub fn message(&self) -> String {
        self.messages.lock().expect("nobody panics with it").recv_timeout(DEADLINE).expect("it prints a line")
    }

    /// Returns the exporter's process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it still runs");
        let status = self.child.wait().expect("it ends");
        assert!(status.success() || std::thread::panicking(), "the exporter ended with {status}");
    }
}

/// A server's response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status and the headers.
    pub head: String,
    /// The body.
    pub body: String,
}

/// The names of a series' labels, whose values may have anything.
fn label_names(series: &str) -> Vec<String> {
    let (mut names, mut name, mut is_escaped, mut is_value) = (Vec::new(), String::new(), false, false);
    for char in series.split_once('{').map_or("", |(_, labels)| labels).chars() {
        match (is_value, char) {
            (true, _) if is_escaped => is_escaped = false,
            (true, '\\') => is_escaped = true,
            (true, '"') => is_value = false,
            (true, _) => {}
            (false, '"') => {
                is_value = true;
                names.push(std::mem::take(&mut name));
            }
            (false, '=' | ',' | '}') => {}
            (false, char) => name.push(char),
        }
    }
    names
}

/// Sends a GET request with these additional headers.
///
/// # Panics
///
/// When it does not answer.
#[must_use]
pub fn get(at: SocketAddr, path: &str, headers: &str) -> Response {
    let mut stream = TcpStream::connect(at).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a stream takes a time-out");
    // With version 1.0 the response is one piece that ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\n{headers}\r\n").expect("it reads");
    response(&mut stream)
}

/// Reads a response to its end.
///
/// # Panics
///
/// When it does not come.
#[must_use]
pub fn response(stream: &mut TcpStream) -> Response {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    parse_response(&text)
}

/// Parses a whole response.
///
/// # Panics
///
/// When it is none.
#[must_use]
pub fn parse_response(text: &str) -> Response {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
    Response { head: format!("{head}\r\n"), body: body.to_owned() }
}

/// An exposition in OpenMetrics' form.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Every value by its name and labels, as they are written.
    pub values: BTreeMap<String, String>,
    /// The help of every family.
    pub help: BTreeMap<String, String>,
}

impl Metrics {
    /// Parses an exposition, which must be valid: each family in one piece after its help and type, no series twice, and
    /// an end.
    ///
    /// # Panics
    ///
    /// When it is invalid.
    #[must_use]
    pub fn parse(exposition: &str) -> Self {
        let mut metrics = Self { values: BTreeMap::new(), help: BTreeMap::new() };
        let mut typed = BTreeSet::new();
        let mut family = String::new();
        let lines = exposition.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end: {exposition:?}"));
        for line in lines.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", name, help] => {
                    name.clone_into(&mut family);
                    assert!(metrics.help.insert(name.to_owned(), help.to_owned()).is_none(), "twice: {line:?}");
                }
                ["#", "TYPE", name, "gauge" | "counter" | "histogram"] => {
                    assert!(name == family && typed.insert(name.to_owned()), "{line:?}");
                }
                ["#", "UNIT", name, unit] => assert!(name == family && name.ends_with(unit), "{line:?}"),
                _ => metrics.value(line, &family),
            }
        }
        metrics
    }

    fn value(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let name = series.split('{').next().unwrap_or_default();
        let of_family =
            ["", "_total", "_bucket", "_count", "_sum"].iter().any(|end| name.strip_suffix(end) == Some(family));
        assert!(of_family, "{line:?} is not of {family:?}");
        assert!(name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_'), "{line:?}");
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line:?}");
        let mut labels = BTreeSet::new();
        assert!(label_names(series).into_iter().all(|label| labels.insert(label)), "a label is there twice: {line:?}");
        assert!(self.values.insert(series.to_owned(), value.to_owned()).is_none(), "twice: {line:?}");
    }

    /// Returns the value of a series, if it is there.
    #[must_use]
    pub fn get(&self, series: &str) -> Option<&str> {
        self.values.get(series).map(String::as_str)
    }

    /// Returns the value of a counter or gauge.
    ///
    /// # Panics
    ///
    /// When it is no number.
    #[must_use]
    pub fn number(&self, series: &str) -> Option<f64> {
        self.get(series).map(|value| value.parse().expect("a number"))
    }

    /// Returns whether the guest's stats are there.
    #[must_use]
    pub fn is_up(&self, guest: &str) -> bool {
        self.get(&format!("scx_vsock_up{{guest=\"{guest}\"}}")) == Some("1")
    }

    /// Returns how often this was the reason why they were not there.
    ///
    /// # Panics
    ///
    /// When that is no number.
    #[must_use]
    pub fn missing(&self, guest: &str, reason: &str) -> u64 {
        let series = format!("scx_vsock_missing_stats_total{{guest=\"{guest}\",reason=\"{reason}\"}}");
        self.get(&series).map_or(0, |count| count.parse().expect("a count"))
    }
}
