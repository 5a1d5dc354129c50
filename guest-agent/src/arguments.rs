//! What the command line and socket activation ask for.

use heapless::Vec;
use scx_vsock_wire::limits::SCHEDULER_SOCKET;
use scx_vsock_wire::line::{line_number, nth_line, take_until};
use scx_vsock_wire::{AGENT_PORT, Text};

/// How many ports one agent serves at most.
pub const MAX_MAPS: usize = 4;

/// Bytes of the longest path of a Unix socket.
pub const MAX_PATH_BYTES: usize = 107;

/// The scheduler's socket where none is named (scx_stats' own default).
pub const DEFAULT_SOCKET: &[u8] = SCHEDULER_SOCKET.as_bytes();

/// The first descriptor of systemd's socket activation.
pub const FIRST_ACTIVATED: i32 = 3;

/// A vsock port and the Unix socket of the scheduler that its hosts reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map<'a> {
    /// The vsock port that is listened on.
    pub port: u32,
    /// The path of the scheduler's socket, of which at most [`MAX_PATH_BYTES`] count.
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
    /// Ports and their schedulers; at least one.
    pub maps: Vec<Map<'a>, MAX_MAPS>,
    /// Inherited listening descriptors, the n-th for the n-th map; where there are none the agent listens itself.
    pub listeners: Vec<i32, MAX_MAPS>,
    /// A vsock CID beside the host's whose connections are served.
    pub allow_cid: Option<u32>,
}

impl Map<'_> {
    /// The agent's port and the socket of scx_stats' servers.
    pub const DEFAULT: Self = Self { port: AGENT_PORT, socket: DEFAULT_SOCKET };
}

impl Default for Config<'_> {
    fn default() -> Self {
        let mut maps = Vec::new();
        let _fits = maps.push(Map::DEFAULT);
        Self { maps, listeners: Vec::new(), allow_cid: None }
    }
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run,
    /// Print how to use the program.
    Help,
    /// Print its version.
    Version,
}

/// What is wrong with the command line, in which argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageError<'a> {
    /// What is wrong.
    pub problem: UsageProblem,
    /// The argument that it is about.
    pub argument: &'a [u8],
}

/// What is wrong with an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageProblem {
    /// There is no such argument.
    Unknown,
    /// It needs a value.
    NoValue,
    /// It is not a decimal number.
    NotANumber,
    /// It is not the number of a port.
    NotAPort,
    /// A path is empty.
    EmptyPath,
    /// A path is too long.
    LongPath,
    /// It is not `PORT=PATH`.
    NotAMap,
    /// The port has a map already.
    MappedTwice,
    /// There are more than [`MAX_MAPS`] maps or descriptors.
    TooMany,
    /// The descriptor was named before.
    NamedTwice,
    /// A port or a socket is named beside a map.
    BesideAMap,
    /// There are more or fewer descriptors than maps.
    NotAsMany,
}

impl UsageProblem {
    /// Returns the message.
    #[must_use]
    pub fn text(self) -> Text<'static> {
        Text::line(nth_line(PROBLEMS, self as usize))
    }
}

/// The messages, a line for each problem.
const PROBLEMS: &str = "\
unknown argument; see --help
needs a value
not a number
a port is a number up to 4294967294
the path is empty
the path is over 107 bytes
a map is PORT=PATH
the port is mapped twice
at most 4 maps or descriptors
the descriptor is named twice
not with --port or --socket
one for each map is needed";

/// `--help`'s text.
pub const HELP: &str = "\
Relays a sched_ext scheduler's stats to the host over vsock.

Usage: scx-vsock-agent [OPTION]...

  --port N         vsock port (729)
  --socket PATH    the scheduler's socket (/var/run/scx/root/stats)
  --map PORT=PATH  both, up to 4 times
  --listen-fd N    listener of the n-th map
  --allow-cid CID  peer beside the host (2)
  -V, --version
  -h, --help
";

/// Reads the arguments after the program's name into `config`, which is replaced. `activated` is how many descriptors
/// socket activation passed.
///
/// ```
/// use scx_vsock_agent::Config;
/// use scx_vsock_agent::arguments::{Command, parse};
///
/// let mut config = Config::default();
/// assert_eq!(parse([&b"--allow-cid"[..], b"1"].into_iter(), 0, &mut config), Ok(Command::Run));
/// assert_eq!(config, Config { allow_cid: Some(1), ..Config::default() });
/// ```
///
/// # Errors
///
/// The first argument that is unknown, incomplete or out of its range.
pub fn parse<'a>(
    mut arguments: impl Iterator<Item = &'a [u8]>,
    activated: usize,
    config: &mut Config<'a>,
) -> Result<Command, UsageError<'a>> {
    config.maps.clear();
    config.listeners.clear();
    config.allow_cid = None;
    let mut usual = Usual { map: Map::DEFAULT, is_changed: false };
    while let Some(name) = arguments.next() {
        let option = line_number(OPTIONS, name);
        let (problem, argument) = match (option, arguments.next()) {
            (VERSION | SHORT_VERSION, _) => return Ok(Command::Version),
            (HELP_OPTION | SHORT_HELP, _) => return Ok(Command::Help),
            (PORT..=ALLOW_CID, Some(value)) => match set(config, &mut usual, option, value) {
                Ok(()) => continue,
                Err(problem) => (problem, value),
            },
            (PORT..=ALLOW_CID, None) => (UsageProblem::NoValue, name),
            _ => (UsageProblem::Unknown, name),
        };
        return Err(UsageError { problem, argument });
    }
    complete(config, &usual, activated).map(|()| Command::Run)
}

/// The options that there are, a line for each.
const OPTIONS: &str = "--port\n--socket\n--map\n--listen-fd\n--allow-cid\n--version\n-V\n--help\n-h";
const PORT: usize = 0;
const SOCKET: usize = 1;
const MAP: usize = 2;
const LISTEN_FD: usize = 3;
const ALLOW_CID: usize = 4;
const VERSION: usize = 5;
const SHORT_VERSION: usize = 6;
const HELP_OPTION: usize = 7;
const SHORT_HELP: usize = 8;

/// The one map of a program that is started without `--map`.
struct Usual<'a> {
    map: Map<'a>,
    is_changed: bool,
}

#[inline(never)]
/// Takes in the value of an option.
fn set<'a>(config: &mut Config<'a>, usual: &mut Usual<'a>, option: usize, value: &'a [u8]) -> Result<(), UsageProblem> {
    let (mut digits, mut path) = (value, value);
    if option == MAP {
        digits = take_until(&mut path, b'=');
        if digits.len() == value.len() {
            return Err(UsageProblem::NotAMap);
        }
    }
    let number = number(digits);
    if matches!(option, PORT | MAP) && number.is_none_or(|port| port == u32::MAX) {
        return Err(UsageProblem::NotAPort);
    }
    if matches!(option, SOCKET | MAP) {
        match path.len() {
            0 => return Err(UsageProblem::EmptyPath),
            1..=MAX_PATH_BYTES => {}
            _ => return Err(UsageProblem::LongPath),
        }
    }
    usual.is_changed |= option <= SOCKET;
    match (option, number) {
        (SOCKET, _) => usual.map.socket = path,
        (_, None) => return Err(UsageProblem::NotANumber),
        (PORT, Some(port)) => usual.map.port = port,
        (MAP, Some(port)) => return add_map(config, Map { port, socket: path }),
        (LISTEN_FD, Some(number)) => return add_listener(config, number),
        (_, Some(cid)) => config.allow_cid = Some(cid),
    }
    Ok(())
}

fn add_map<'a>(config: &mut Config<'a>, map: Map<'a>) -> Result<(), UsageProblem> {
    if config.maps.iter().any(|other| other.port == map.port) {
        return Err(UsageProblem::MappedTwice);
    }
    config.maps.push(map).map_err(|_| UsageProblem::TooMany)
}

fn add_listener(config: &mut Config<'_>, number: u32) -> Result<(), UsageProblem> {
    let descriptor = number.cast_signed();
    if descriptor < 0 {
        return Err(UsageProblem::NotANumber);
    }
    #[allow(clippy::manual_contains, reason = "that one is unrolled, which four descriptors are not worth")]
    if config.listeners.iter().any(|&listener| listener == descriptor) {
        return Err(UsageProblem::NamedTwice);
    }
    config.listeners.push(descriptor).map_err(|_| UsageProblem::TooMany)
}

/// Fills in what no argument named.
fn complete<'a>(config: &mut Config<'a>, usual: &Usual<'a>, activated: usize) -> Result<(), UsageError<'a>> {
    if config.maps.is_empty() {
        let _fits = config.maps.push(usual.map);
    } else if usual.is_changed {
        return Err(UsageError { problem: UsageProblem::BesideAMap, argument: b"--map" });
    }
    if config.listeners.is_empty() && activated == config.maps.len() {
        for descriptor in (FIRST_ACTIVATED..).take(activated) {
            let _fits = config.listeners.push(descriptor);
        }
    } else if config.listeners.len() != config.maps.len() && (activated != 0 || !config.listeners.is_empty()) {
        return Err(UsageError { problem: UsageProblem::NotAsMany, argument: b"--listen-fd (LISTEN_FDS)" });
    }
    Ok(())
}

/// Returns the value of a decimal number without sign.
#[must_use]
pub fn number(digits: &[u8]) -> Option<u32> {
    let mut number = 0;
    for digit in digits {
        if !digit.is_ascii_digit() || number > u64::from(u32::MAX) {
            return None;
        }
        number = number * 10 + u64::from(digit & 0xf);
    }
    if digits.is_empty() { None } else { u32::try_from(number).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&'static str]) -> Result<Config<'static>, UsageError<'static>> {
        activated(arguments, 0).map(|(command, config)| {
            assert_eq!(command, Command::Run);
            config
        })
    }

    fn activated(arguments: &[&'static str], count: usize) -> Result<(Command, Config<'static>), UsageError<'static>> {
        let mut config = Config { allow_cid: Some(7), ..Config::default() };
        let command = parse(arguments.iter().map(|argument| argument.as_bytes()), count, &mut config)?;
        Ok((command, config))
    }

    fn problem(arguments: &[&'static str]) -> String {
        config(arguments).unwrap_err().problem.text().to_string()
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
        assert_eq!(problem(&five), "at most 4 maps or descriptors");
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(problem(&["--prot", "1"]), "unknown argument; see --help");
        assert_eq!(problem(&["--port"]), "needs a value");
        assert_eq!(problem(&["--port", "4294967295"]), "a port is a number up to 4294967294");
        assert_eq!(problem(&["--port", "-1"]), "a port is a number up to 4294967294");
        assert_eq!(problem(&["--socket", ""]), "the path is empty");
        assert_eq!(problem(&["--map", "1"]), "a map is PORT=PATH");
        assert_eq!(problem(&["--map", "=/a"]), "a port is a number up to 4294967294");
        assert_eq!(problem(&["--map", "1="]), "the path is empty");
        assert_eq!(problem(&["--map", "1=/a", "--map", "1=/b"]), "the port is mapped twice");
        assert_eq!(problem(&["--map", "1=/a", "--port", "2"]), "not with --port or --socket");
        assert_eq!(problem(&["--listen-fd", "x"]), "not a number");
        assert_eq!(problem(&["--listen-fd", "3", "--listen-fd", "3"]), "the descriptor is named twice");
        assert_eq!(problem(&["--allow-cid", "99999999999"]), "not a number");
    }

    #[test]
    fn the_nth_descriptor_serves_the_nth_map() {
        let two = config(&["--map", "1=/a", "--map", "2=/b", "--listen-fd", "7", "--listen-fd", "5"]).unwrap();
        assert_eq!(two.listeners.as_slice(), [7, 5]);
        let wrong = "one for each map is needed";
        assert_eq!(problem(&["--listen-fd", "7", "--listen-fd", "5"]), wrong);
    }

    #[test]
    fn maps_are_compared_by_their_numbers() {
        assert_eq!(problem(&["--map", "1=/a", "--map", "01=/b"]), "the port is mapped twice");
        assert_eq!(problem(&["--map", "4294967295=/a"]), "a port is a number up to 4294967294");
        assert_eq!(problem(&["--map", "4294967296=/a"]), "a port is a number up to 4294967294");
        assert_eq!(problem(&["--map", "1 =/a"]), "a port is a number up to 4294967294");
        let one_socket = config(&["--map", "0=/a", "--map", "4294967294=/a"]).unwrap();
        assert_eq!(one_socket.maps.as_slice().len(), 2);
        assert_eq!(problem(&["--port", "1", "--map", "1=/a"]), "not with --port or --socket");
        assert_eq!(problem(&["--socket", "/a", "--map", "1=/a"]), "not with --port or --socket");
    }

    #[test]
    fn descriptors_are_as_many_as_maps() {
        let wrong = "one for each map is needed";
        let maps = ["--map", "1=/a", "--map", "2=/b"];
        for count in [1, 3, 5, usize::MAX] {
            assert_eq!(activated(&maps, count).unwrap_err().problem.text().to_string(), wrong, "{count}");
        }
        assert_eq!(activated(&maps, 2).unwrap().1.listeners.as_slice(), [3, 4]);
        // Named ones count instead of activated ones.
        let named = [&maps[..], &["--listen-fd", "0", "--listen-fd", "2147483647"]].concat();
        assert_eq!(activated(&named, 3).unwrap().1.listeners.as_slice(), [0, i32::MAX]);
        assert_eq!(problem(&["--listen-fd", "2147483648"]), "not a number");
        let five = ["1", "2", "3", "4", "5"].map(|fd| ["--listen-fd", fd]);
        assert_eq!(problem(five.as_flattened()), "at most 4 maps or descriptors");
    }

    #[test]
    fn activated_descriptors_start_at_three() {
        let (_, config) = activated(&[], 1).unwrap();
        assert_eq!(config.listeners.as_slice(), [3]);
        assert!(activated(&[], 2).is_err());
        assert!(activated(&[], usize::MAX).is_err());
    }

    #[test]
    fn a_path_of_107_bytes_passes_and_one_more_does_not() {
        static PATH: [u8; 109] = [b'/'; 109];
        let path = |length| std::str::from_utf8(&PATH[..length]).unwrap();
        assert_eq!(config(&["--socket", path(107)]).unwrap().maps[0].socket.len(), 107);
        let too_long = "the path is over 107 bytes";
        assert_eq!(problem(&["--socket", path(108)]), too_long);
        let map: &'static str = format!("1={}", path(108)).leak();
        assert_eq!(problem(&["--map", map]), too_long);
    }

    #[test]
    fn help_and_version_win_over_what_follows() {
        assert_eq!(activated(&["--help", "--bad"], 0).map(|(command, _)| command), Ok(Command::Help));
        assert_eq!(activated(&["--version"], 0).map(|(command, _)| command), Ok(Command::Version));
    }
}
