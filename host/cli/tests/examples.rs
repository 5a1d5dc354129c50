//! The commands of README and guide, as they are printed: each runs here, in a guest, or is named with why it does not.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use scx_vsock::guest::initramfs::build::InitramfsBuilder;
use scx_vsock_tests::agent;
use scx_vsock_tests::guest::{Kernel, builder};
use tempfile::TempDir;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// It runs here, and ends with this exit code.
    Here(i32),
    /// It runs with a guest, in `commands_with_a_guest_work`.
    WithGuest,
    /// It does not run. Why.
    Not(&'static str),
}

/// The first pattern that a command contains says what becomes of it.
const RULES: &[(&str, Run)] = &[
    ("ci/demo", Run::Not("tests/tests/demo.rs runs it")),
    ("ci/test", Run::Not("it runs this test")),
    ("cargo install", Run::Not("ci/package runs it, from packages")),
    ("rustup target add", Run::Not("changes the machine's Rust")),
    ("ci/deb", Run::Not("ci/deb-guest runs it")),
    ("apt install", Run::Not("ci/deb-guest installs the packages, in a root of their own")),
    ("systemctl enable", Run::Not("ci/deb-guest does it, in a root of its own")),
    ("update-initramfs", Run::Not("makes the machine's own image; images_real.rs runs mkinitramfs")),
    ("dracut", Run::Not("makes an image of the machine's own files; images_real.rs runs it with a list of files")),
    ("mkdir -p", Run::Here(0)),
    ("scx-vsock agent --arch", Run::Not("needs a command that was built with another architecture's Rust")),
    ("scx-vsock agent", Run::Here(0)),
    ("--kernel vmlinuz-arm64", Run::Not("boots a guest of another architecture")),
    ("install -m", Run::Here(0)),
    ("image add", Run::Here(0)),
    ("scx-vsock completions", Run::Here(0)),
    ("scx-vsock man", Run::Here(0)),
    ("scx-vsock export --print", Run::Here(0)),
    ("scx-vsock doctor vsock://3", Run::Here(21)),
    ("scx-vsock stats vsock://3", Run::Here(21)),
    ("scx-vsock-agent", Run::Not("runs in a guest, as root; tests/tests/agent.rs and qemu_agent.rs do that")),
    (
        "$(uname -r)",
        Run::Not("boots the kernel of this machine, which need not have a file here; the same with names runs"),
    ),
    ("scx-vsock watch vsock://3", Run::Here(21)),
    ("scx-vsock report", Run::Here(0)),
    ("scx-vsock boot", Run::WithGuest),
    ("scx-vsock serve", Run::WithGuest),
    ("qemu-system-x86_64", Run::WithGuest),
    ("scx-vsock stats hybrid:/tmp/g1.sock.hybrid", Run::WithGuest),
    ("scx-vsock proxy hybrid:/tmp/g", Run::WithGuest),
    ("scx-vsock export web=", Run::WithGuest),
    ("curl http://127.0.0.1:9729/metrics", Run::WithGuest),
];

fn rule(command: &str) -> Option<Run> {
    RULES.iter().find(|(pattern, _)| command.contains(pattern)).map(|(_, run)| *run)
}

/// The commands of the blocks marked `sh`, one a line.
fn commands() -> Vec<String> {
    let guide = fs::read_dir(agent::repository().join("host/guide")).unwrap().map(|file| file.unwrap().path());
    let files = guide.chain([agent::repository().join("README.md")]);
    let texts = files.map(|file| fs::read_to_string(file).unwrap());
    let mut commands: Vec<String> = texts.flat_map(|text| commands_of(&text)).collect();
    commands.sort();
    commands.dedup();
    commands
}

fn commands_of(text: &str) -> Vec<String> {
    let blocks = text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap_or_default());
    let joined = blocks.map(|block| block.replace("\\\n", " "));
    joined
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn every_command_of_the_docs_is_run_or_says_why_not() {
    let commands = commands();
    for command in &commands {
        assert!(
            rule(command).is_some(),
            "README.md or host/guide: say in RULES of {} what becomes of: {command}",
            file!()
        );
    }
    assert!(commands.iter().any(|command| rule(command) == Some(Run::WithGuest)));
}

#[test]
fn commands_are_found() {
    let text = "# T\n\n```sh\na \\\n  b\n\nc # d\n```\n\n```rust\nx\n```\n```sh\ne\n```\n";
    assert_eq!(commands_of(text), ["a    b", "c # d", "e"]);
}

/// A folder with what the commands name, and programs first in `PATH`.
fn stage() -> TempDir {
    let stage = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| stage.path().join(name);
    for folder in ["bin", "tmp", "IMAGE/usr/sbin"] {
        fs::create_dir_all(path(folder)).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_scx-vsock"), path("bin/scx-vsock")).unwrap();
    let mut image = InitramfsBuilder::new().unwrap();
    image.program("bin/sh", b"a shell").unwrap();
    image.program("init", b"an init").unwrap();
    fs::write(path("initrd.gz"), image.finish().unwrap()).unwrap();
    let sample = r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":1000,"stats":{"Ok":{"nr_running":2}}}"#;
    for recording in ["samples", "old1", "old2", "new1", "new2"] {
        fs::write(path(&format!("{recording}.jsonl")), format!("{sample}\n")).unwrap();
    }
    stage
}

/// The folders in the machine's `/tmp` that commands need: this checkout and the cache may be there.
fn kept_of_tmp() -> impl Iterator<Item = String> {
    let cache = env::var("XDG_CACHE_HOME").unwrap_or_default();
    let name = |folder: &str| Some(folder.strip_prefix("/tmp/")?.split('/').next()?.to_owned());
    BTreeSet::from([env!("CARGO_TARGET_TMPDIR"), cache.as_str()].map(name)).into_iter().flatten()
}

/// A shell in a stage, with a `/tmp`, a network and processes of its own, which end with it.
struct Shell {
    child: Child,
    commands: ChildStdin,
    output: BufReader<std::io::PipeReader>,
}

impl Shell {
    fn start(stage: &Path, prologue: &str) -> Self {
        let (output, writer) = std::io::pipe().unwrap();
        let path = format!("{}:{}", stage.join("bin").display(), env::var("PATH").unwrap());
        let kept = kept_of_tmp().map(|name| format!("mkdir tmp/{name}; mount --rbind /tmp/{name} tmp/{name}; "));
        let kept: String = kept.collect();
        let script = format!("set -e; {kept}mount --rbind tmp /tmp; cd \"$PWD\"; {prologue}set +e; exec bash");
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        command.args(["bash", "-c", &script]);
        command.current_dir(stage).env("PATH", path).env("HOME", stage).env_remove("TMPDIR").env_remove("QEMU");
        let command = command.stdin(Stdio::piped()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        Self { child, commands, output: BufReader::new(output) }
    }

    fn enter(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    /// Skips output up to a line with this text, which it returns, with all before it.
    fn wait_for(&mut self, text: &str) -> (String, String) {
        let mut before = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "no {text:?} in {before}");
            if line.contains(text) {
                return (line, before);
            }
            before += &line;
        }
    }

    /// Runs a command to its end; returns its exit code and its output.
    fn run(&mut self, command: &str) -> (i32, String) {
        self.enter(&format!("{command}\necho \"the exit code is $?\""));
        let (line, output) = self.wait_for("the exit code is ");
        (line.trim().rsplit(' ').next().unwrap().parse().unwrap(), output)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn commands_that_need_no_guest_work() {
    let stage = stage();
    let mut shell = Shell::start(stage.path(), "");
    for command in commands() {
        if let Some(Run::Here(expected)) = rule(&command) {
            let (code, output) = shell.run(&command);
            assert_eq!(code, expected, "{command}: {output}");
        }
    }
    for made in ["initrd-with-agent", "IMAGE/usr/sbin/scx-vsock-agent", ".cargo/share/man/man1/scx-vsock.1"] {
        assert!(stage.path().join(made).exists(), "{made}");
    }
}

/// The one command with this pattern that runs with a guest.
fn the(pattern: &str) -> String {
    let mut commands = commands();
    commands.retain(|command| command.contains(pattern) && rule(command) == Some(Run::WithGuest));
    let [command] = &commands[..] else { panic!("{pattern}: {commands:?}") };
    command.clone()
}

/// What the commands with a guest name: this run's kernel, and scx_bpfland.
fn prologue(stage: &Path) -> String {
    let kernel = Kernel::of_this_run();
    let Kernel { image, modules, config } = kernel;
    let script = agent::repository().join("ci/scheduler");
    let output = Command::new(script).arg("scx_bpfland").output().unwrap();
    let scheduler = String::from_utf8(output.stdout).unwrap();
    symlink(scheduler.trim(), stage.join("bin/scx_bpfland")).unwrap();
    symlink(image, stage.join("vmlinuz")).unwrap();
    let guest = builder().scheduler(scheduler.trim(), &[]);
    fs::write(stage.join("initrd"), guest.initramfs().unwrap()).unwrap();
    format!(
        "busybox ifconfig lo up; mount -t tmpfs t /boot; \
         ln -s {} /boot/vmlinuz-7.2.0; ln -s {} /boot/config-{}; mkdir -p /lib/modules; \
         mount -t tmpfs t /lib/modules; ln -s {} /lib/modules/7.2.0; ",
        image.display(),
        config.display(),
        // A kernel of the name that the docs have is of that release.
        kernel.release(),
        modules.display()
    )
}

#[test]
#[ignore = "boots QEMU guests with scx_bpfland; run ci/test sched-ext"]
fn commands_with_a_guest_work() {
    let stage = stage();
    let mut shell = Shell::start(stage.path(), &prologue(stage.path()));
    let (code, output) = shell.run(&the("--junit"));
    assert!(code == 0 && output.contains("kernel:state = enabled: held: 4 values"), "{output}");
    assert!(fs::read_to_string(stage.path().join("verdicts.xml")).unwrap().contains(r#"tests="5""#));
    let (code, output) = shell.run(&the("--jsonl"));
    assert!(code == 0 && output.contains(r#""stats":{"Ok":{"#), "{output}");

    shell.enter(&the("scx-vsock serve --socket /tmp/g1.sock &"));
    shell.wait_for("waiting for QEMU");
    shell.enter(&the("qemu-system-x86_64"));
    // So that the time that the next command waits is enough on a busy machine.
    shell.wait_for("the guest's agent is ready");
    let (code, output) = shell.run(&the("scx-vsock stats hybrid:/tmp/g1.sock.hybrid"));
    assert!(code == 0 && output.contains("nr_running"), "{output}");

    // Both are sessions with the one guest.
    shell.run("ln -s g1.sock.hybrid /tmp/g2.sock.hybrid");
    for guest in ["g1", "g2"] {
        shell.enter(&format!("{{ {}\n}} &", the(&format!("scx-vsock proxy hybrid:/tmp/{guest}."))));
        (0..3).for_each(|_| drop(shell.wait_for("[scx_bpfland] tasks")));
    }
    shell.enter(&format!("{} &", the("scx-vsock export web=")));
    shell.wait_for("serving the stats of 2 guests");
    let (code, page) = shell.run(&the("curl http://127.0.0.1:9729/metrics"));
    assert!(code == 0 && page.contains(r#"scx_nr_running{guest="database"} "#), "{page}");
    assert!(page.contains(r#"scx_vsock_up{guest="web"} 0"#), "{page}");
}
