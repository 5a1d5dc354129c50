//! What the program is told on its command line and by socket activation.

use heapless::Vec;
use scx_vsock_wire::AGENT_PORT;
use scx_vsock_wire::limits::SCHEDULER_SOCKET;

/// How many ports one agent serves at the most.
pub const MAX_MAPS: usize = 4;

/// The scheduler's socket where none is named (scx_stats' own default).
pub const DEFAULT_SOCKET: &[u8] = SCHEDULER_SOCKET.as_bytes();

/// The first descriptor of systemd's socket activation.
pub const FIRST_ACTIVATED: i32 = 3;

/// A vsock port and the scheduler's Unix socket that it leads to.
///
/// ```
/// use scx_vsock_agent::Map;
/// use scx_vsock_agent::arguments::DEFAULT_SOCKET;
///
/// let usual = Map { port: scx_vsock_wire::AGENT_PORT, socket: DEFAULT_SOCKET };
/// assert_eq!(scx_vsock_agent::Config::default().maps, [usual]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map<'a> {
    /// The vsock port that is listened on.
    pub port: u32,
    /// The path of the scheduler's socket.
    pub socket: &'a [u8],
}

/// What an agent serves.
///
/// ```
/// use scx_vsock_agent::{Config, Map};
///
/// let mut config = Config::default();
/// assert_eq!(config.maps[0].port, 729);
/// config.maps.push(Map { port: 730, socket: b"/run/second/stats" }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config<'a> {
    /// Ports and where they lead; at least one.
    pub maps: Vec<Map<'a>, MAX_MAPS>,
    /// Inherited listening descriptors, the n-th for the n-th map; where there are none the agent listens itself.
    pub listeners: Vec<i32, MAX_MAPS>,
    /// A vsock CID beside the host's whose connections are served.
    pub allow_cid: Option<u32>,
}

impl Default for Config<'_> {
    fn default() -> Self {
        let mut maps = Vec::new();
        let _full = maps.push(Map { port: AGENT_PORT, socket: DEFAULT_SOCKET });
        Self { maps, listeners: Vec::new(), allow_cid: None }
    }
}

/// What the command line asks for.
///
/// ```
/// use scx_vsock_agent::arguments::{Command, HELP, parse};
///
/// match parse([&b"--help"[..]].into_iter(), 0) {
///     Ok(Command::Run(config)) => println!("{} ports are served", config.maps.len()),
///     Ok(Command::Help) => print!("{HELP}"),
///     Ok(Command::Version) => println!("{}", env!("CARGO_PKG_VERSION")),
///     Err(error) => panic!("{}", error.problem),
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Serve.
    Run(Config<'a>),
    /// Print how to use the program.
    Help,
    /// Print its version.
    Version,
}

/// What is wrong with the command line: the text is the whole message, the argument what it is about.
///
/// ```
/// use scx_vsock_agent::arguments::{UsageError, parse};
///
/// let UsageError { problem, argument } = parse([&b"--port"[..], b"many"].into_iter(), 0).unwrap_err();
/// assert_eq!(argument, b"many");
/// assert_eq!(problem, "the port must be a decimal number from 0 to 4294967294");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageError<'a> {
    /// What is wrong and how it is right.
    pub problem: &'static str,
    /// The argument that it is about.
    pub argument: &'a [u8],
}

/// `--help`'s text.
pub const HELP: &str = "\
scx-vsock-agent: relays a sched_ext scheduler's statistics to the host over vsock.

Usage: scx-vsock-agent [--port N] [--socket PATH] [--map PORT=PATH]...
                       [--listen-fd N]... [--allow-cid CID]

  --port N         vsock port to listen on (729)
  --socket PATH    the scheduler's socket (/var/run/scx/root/stats)
  --map PORT=PATH  a port and the socket it leads to, instead of the two above; at most 4
  --listen-fd N    serve this inherited listening socket; the n-th serves the n-th map
  --allow-cid CID  serve this vsock peer beside the host (CID 2)
  --version        print the version
  --help           print this

Sockets passed by systemd (LISTEN_FDS) are served in the same way as --listen-fd.
";

/// Reads the arguments behind the program's name. `activated` is how many descriptors socket activation passed.
///
/// ```
/// use scx_vsock_agent::Config;
/// use scx_vsock_agent::arguments::{Command, parse};
///
/// assert_eq!(parse([].into_iter(), 0), Ok(Command::Run(Config::default())));
/// let served = parse([&b"--allow-cid"[..], b"1"].into_iter(), 0);
/// assert_eq!(served, Ok(Command::Run(Config { allow_cid: Some(1), ..Config::default() })));
/// ```
///
/// # Errors
///
/// The first argument that is unknown, incomplete or out of its range.
#[inline(never)]
pub fn parse<'a>(arguments: impl Iterator<Item = &'a [u8]>, activated: usize) -> Result<Command<'a>, UsageError<'a>> {
    let mut parser = Parser::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        // One table and one comparison: a match on texts would be compared byte by byte in place.
        let Some(&(_, option)) = OPTIONS.iter().find(|(name, _)| *name == argument) else {
            return Err(UsageError { problem: "unknown argument; --help lists those that are known", argument });
        };
        match option {
            Opt::Help => return Ok(Command::Help),
            Opt::Version => return Ok(Command::Version),
            _ => parser.option(option, argument, arguments.next())?,
        }
    }
    parser.finish(activated).map(Command::Run)
}

/// The options that there are.
#[derive(Clone, Copy)]
enum Opt {
    Port,
    Socket,
    Map,
    ListenFd,
    AllowCid,
    Version,
    Help,
}

const OPTIONS: [(&[u8], Opt); 9] = [
    (b"--port", Opt::Port),
    (b"--socket", Opt::Socket),
    (b"--map", Opt::Map),
    (b"--listen-fd", Opt::ListenFd),
    (b"--allow-cid", Opt::AllowCid),
    (b"--version", Opt::Version),
    (b"-V", Opt::Version),
    (b"--help", Opt::Help),
    (b"-h", Opt::Help),
];

#[derive(Default)]
struct Parser<'a> {
    port: Option<u32>,
    socket: Option<&'a [u8]>,
    maps: Vec<Map<'a>, MAX_MAPS>,
    listeners: Vec<i32, MAX_MAPS>,
    allow_cid: Option<u32>,
}

impl<'a> Parser<'a> {
    fn option(&mut self, option: Opt, name: &'a [u8], value: Option<&'a [u8]>) -> Result<(), UsageError<'a>> {
        let Some(value) = value else {
            return Err(UsageError { problem: "a value must follow this argument", argument: name });
        };
        match option {
            Opt::Port => self.port = Some(port(value, value)?),
            Opt::Socket => self.socket = Some(path(value)?),
            Opt::Map => self.map(value)?,
            Opt::ListenFd => self.listen_fd(value)?,
            Opt::AllowCid => self.allow_cid = Some(number(value).ok_or(not_a_number(value))?),
            Opt::Version | Opt::Help => {}
        }
        Ok(())
    }

    fn map(&mut self, value: &'a [u8]) -> Result<(), UsageError<'a>> {
        let fail = |problem| UsageError { problem, argument: value };
        let at = value.iter().position(|&byte| byte == b'=').ok_or(fail("a map must be PORT=PATH"))?;
        let port = port(value.get(..at).unwrap_or(&[]), value)?;
        if self.maps.iter().any(|map| map.port == port) {
            return Err(fail("this port is mapped twice"));
        }
        let map = Map { port, socket: path(value.get(at + 1..).unwrap_or(&[]))? };
        self.maps.push(map).map_err(|_| fail("at most 4 maps are served"))
    }

    fn listen_fd(&mut self, value: &'a [u8]) -> Result<(), UsageError<'a>> {
        let fail = |problem| UsageError { problem, argument: value };
        let descriptor = number(value).and_then(|number| i32::try_from(number).ok()).ok_or(not_a_number(value))?;
        #[allow(clippy::manual_contains, reason = "that one is unrolled, which four descriptors are not worth")]
        if self.listeners.iter().any(|&listener| listener == descriptor) {
            return Err(fail("this descriptor is named twice"));
        }
        self.listeners.push(descriptor).map_err(|_| fail("at most 4 descriptors are served"))
    }

    fn finish(mut self, activated: usize) -> Result<Config<'a>, UsageError<'a>> {
        let fail = |problem, argument| Err(UsageError { problem, argument });
        if self.maps.is_empty() {
            let map = Map { port: self.port.unwrap_or(AGENT_PORT), socket: self.socket.unwrap_or(DEFAULT_SOCKET) };
            let _full = self.maps.push(map);
        } else if self.port.is_some() || self.socket.is_some() {
            return fail("--port and --socket do not go with --map", b"--map");
        }
        if self.listeners.is_empty() {
            for descriptor in (FIRST_ACTIVATED..).take(activated) {
                if self.listeners.push(descriptor).is_err() {
                    break;
                }
            }
        }
        let given = if activated > MAX_MAPS { activated } else { self.listeners.len() };
        if given != 0 && given != self.maps.len() {
            return fail("as many listening descriptors as maps are needed", b"--listen-fd (LISTEN_FDS)");
        }
        Ok(Config { maps: self.maps, listeners: self.listeners, allow_cid: self.allow_cid })
    }
}

fn not_a_number(argument: &[u8]) -> UsageError<'_> {
    UsageError { problem: "this must be a decimal number", argument }
}

fn port<'a>(digits: &[u8], argument: &'a [u8]) -> Result<u32, UsageError<'a>> {
    let problem = "the port must be a decimal number from 0 to 4294967294";
    number(digits).filter(|&port| port != u32::MAX).ok_or(UsageError { problem, argument })
}

fn path(value: &[u8]) -> Result<&[u8], UsageError<'_>> {
    if value.is_empty() { Err(UsageError { problem: "the path is empty", argument: value }) } else { Ok(value) }
}

/// A decimal number without sign.
///
/// ```
/// use scx_vsock_agent::arguments::number;
///
/// assert_eq!(number(b"729"), Some(729));
/// assert_eq!(number(b"-1"), None);
/// ```
#[must_use]
pub fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u32::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&'static str]) -> Result<Config<'static>, UsageError<'static>> {
        match parse(arguments.iter().map(|argument| argument.as_bytes()), 0)? {
            Command::Run(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    fn problem(arguments: &[&'static str]) -> &'static str {
        config(arguments).unwrap_err().problem
    }

    #[test]
    fn nothing_means_the_agents_port_and_the_default_socket() {
        assert_eq!(config(&[]).unwrap(), Config::default());
    }

    #[test]
    fn port_and_socket_replace_the_defaults() {
        let config = config(&["--socket", "/s", "--port", "4294967294"]).unwrap();
        assert_eq!(config.maps.as_slice(), [Map { port: u32::MAX - 1, socket: b"/s" }]);
    }

    #[test]
    fn four_maps_are_served_and_a_fifth_is_refused() {
        let maps = ["--map", "1=/a", "--map", "2=/b=b", "--map", "3=/b", "--map", "4=/d"];
        let four = config(&maps).unwrap();
        assert_eq!(four.maps[1], Map { port: 2, socket: b"/b=b" });
        let five = [&maps[..], &["--map", "5=/e"]].concat();
        assert_eq!(problem(&five), "at most 4 maps are served");
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(problem(&["--prot", "1"]), "unknown argument; --help lists those that are known");
        assert_eq!(problem(&["--port"]), "a value must follow this argument");
        assert_eq!(problem(&["--port", "4294967295"]), "the port must be a decimal number from 0 to 4294967294");
        assert_eq!(problem(&["--port", "-1"]), "the port must be a decimal number from 0 to 4294967294");
        assert_eq!(problem(&["--socket", ""]), "the path is empty");
        assert_eq!(problem(&["--map", "1"]), "a map must be PORT=PATH");
        assert_eq!(problem(&["--map", "=/a"]), "the port must be a decimal number from 0 to 4294967294");
        assert_eq!(problem(&["--map", "1="]), "the path is empty");
        assert_eq!(problem(&["--map", "1=/a", "--map", "1=/b"]), "this port is mapped twice");
        assert_eq!(problem(&["--map", "1=/a", "--port", "2"]), "--port and --socket do not go with --map");
        assert_eq!(problem(&["--listen-fd", "x"]), "this must be a decimal number");
        assert_eq!(problem(&["--listen-fd", "3", "--listen-fd", "3"]), "this descriptor is named twice");
        assert_eq!(problem(&["--allow-cid", "99999999999"]), "this must be a decimal number");
    }

    #[test]
    fn the_nth_descriptor_serves_the_nth_map() {
        let two = config(&["--map", "1=/a", "--map", "2=/b", "--listen-fd", "7", "--listen-fd", "5"]).unwrap();
        assert_eq!(two.listeners.as_slice(), [7, 5]);
        let wrong = "as many listening descriptors as maps are needed";
        assert_eq!(problem(&["--listen-fd", "7", "--listen-fd", "5"]), wrong);
    }

    #[test]
    fn activated_descriptors_start_at_three() {
        let Ok(Command::Run(config)) = parse([].into_iter(), 1) else { panic!("must run") };
        assert_eq!(config.listeners.as_slice(), [3]);
        assert!(parse([].into_iter(), 2).is_err());
        assert!(parse([].into_iter(), usize::MAX).is_err());
    }

    #[test]
    fn help_and_version_win_over_what_follows() {
        assert_eq!(parse(["--help", "--bad"].map(str::as_bytes).into_iter(), 0), Ok(Command::Help));
        assert_eq!(parse(["--version"].map(str::as_bytes).into_iter(), 0), Ok(Command::Version));
    }
}
