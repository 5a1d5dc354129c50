//! `scx-vsock image` as a process: its messages and files, and a guest whose image has nothing of ours but the agent.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::process::{Pid, Signal, kill_process};

use scx_vsock::guest::initramfs::build::InitramfsBuilder;
use scx_vsock::guest::initramfs::libraries::{FOLDER, add_program};
use scx_vsock::guest::initramfs::modules::{Modules, VSOCK};
use scx_vsock_tests::agent;
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::guest::{Kernel, TypedQemu};
use scx_vsock_tests::program;
use tempfile::TempDir;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

fn add(base: &Path, out: &Path) -> Command {
    let mut command = Command::new(COMMAND);
    command.args(["image", "add"]).args([base, out]).env_remove("SCX_VSOCK_AGENT").stdin(Stdio::null());
    command
}

/// An `image add` with a limit in the words of prlimit, without its arguments.
fn limited(limit: &str) -> Command {
    let mut command = Command::new("prlimit");
    command.args([limit, COMMAND, "image", "add"]).stdin(Stdio::null());
    command
}

/// The one line that a command prints. It must end with this exit code.
fn message(command: &mut Command, code: i32) -> String {
    let [line] = <[String; 1]>::try_from(messages(command, code)).unwrap();
    line
}

/// The lines that a command prints. It must end with this exit code.
fn messages(command: &mut Command, code: i32) -> Vec<String> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!((status.code(), stdout.len()), (Some(code), 0), "{stderr}");
    stderr.lines().map(|line| line.strip_prefix("scx-vsock: ").unwrap().to_owned()).collect()
}

/// A list of built-in modules, with the transport.
const BUILT_IN: &[u8] = b"\
kernel/net/vmw_vsock/vsock.ko
kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko
kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko
";

/// A folder with an initramfs and an agent.
struct Files {
    folder: TempDir,
    base: PathBuf,
    out: PathBuf,
    agent: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [base, out, agent] = ["base", "out", "agent"].map(|name| folder.path().join(name));
        let mut image = InitramfsBuilder::new().unwrap();
        image.program("bin/sh", b"a shell").unwrap();
        image.program("init", b"an init").unwrap();
        image.file("lib/modules/1/modules.builtin", BUILT_IN).unwrap();
        fs::write(&base, image.finish().unwrap()).unwrap();
        fs::write(&agent, "an agent").unwrap();
        Self { folder, base, out, agent }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn add(&self, base: &Path, out: &Path) -> Command {
        let mut command = add(base, out);
        command.arg("--agent").arg(&self.agent);
        command
    }

    /// The names of the files in the folder.
    fn names(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The mode of OUT after an agent was added to a BASE of this mode.
    fn mode_from(&self, base_mode: u32) -> u32 {
        fs::set_permissions(&self.base, Permissions::from_mode(base_mode)).unwrap();
        message(&mut self.add(&self.base, &self.out), 0);
        mode(&self.out)
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn an_added_agent_is_reported() {
    let files = Files::new();
    let (base, out) = (&files.base, &files.out);
    let line = message(&mut files.add(base, out), 0);
    let more = fs::metadata(out).unwrap().len() - fs::metadata(base).unwrap().len();
    let (from, to) = (base.display(), out.display());
    let init = "its /init starts /scx-vsock/agent and then runs /scx-vsock/init";
    assert_eq!(line, format!("wrote {to}, {more} bytes more than {from}: {init}"));
    assert!(fs::read(out).unwrap().starts_with(&fs::read(base).unwrap()));
    assert_eq!(mode(out), mode(base));
    assert_eq!(files.names(), ["agent", "base", "out"]);
    let again = message(&mut files.add(out, out), 0);
    assert_eq!(again, format!("wrote {to}, 0 bytes more than {to}: {init}"), "the agent is replaced");
}

#[test]
fn a_missing_transport_is_a_warning() {
    let files = Files::new();
    let mut image = InitramfsBuilder::new().unwrap();
    for path in ["bin/sh", "init", "lib/modules/1/kernel/net/vmw_vsock/vsock.ko.xz"] {
        image.program(path, b"a file").unwrap();
    }
    fs::write(&files.base, image.finish().unwrap()).unwrap();
    let lines = messages(&mut files.add(&files.base, &files.out), 0);
    let missing = "vmw_vsock_virtio_transport_common and vmw_vsock_virtio_transport";
    let warning = format!("warning: {} has no kernel module {missing}: unless", files.base.display());
    assert!(lines.len() == 2 && lines[1].starts_with(&warning), "{lines:?}");
    assert!(lines[1].contains("/etc/initramfs-tools/modules") && lines[1].contains("dracut"), "{lines:?}");
}

#[test]
fn paths_are_bytes() {
    let files = Files::new();
    let [base, out] = [&b"b\xe9se"[..], b"o\xfct"].map(|name| files.folder.path().join(OsStr::from_bytes(name)));
    fs::rename(&files.base, &base).unwrap();
    message(&mut files.add(&base, &out), 0);
    assert!(fs::read(&out).unwrap().starts_with(&fs::read(&base).unwrap()));
    message(&mut files.add(&out, &out), 0);
}

#[test]
fn a_replaced_file_stays_what_it_was() {
    let files = Files::new();
    fs::write(&files.out, "before").unwrap();
    fs::set_permissions(&files.out, Permissions::from_mode(0o600)).unwrap();
    symlink("out", files.path("link")).unwrap();
    message(&mut files.add(&files.base, &files.path("link")), 0);
    assert_eq!(mode(&files.out), 0o600);
    assert!(fs::symlink_metadata(files.path("link")).unwrap().is_symlink());
    let printed = files.add(&files.base, "/dev/stdout".as_ref()).output().unwrap();
    assert_eq!(printed.stdout, fs::read(&files.out).unwrap());
}

#[test]
fn a_link_to_no_file_is_followed() {
    let files = Files::new();
    fs::create_dir(files.path("folder")).unwrap();
    symlink("folder/link", files.path("link")).unwrap();
    symlink("../out", files.path("folder/link")).unwrap();
    message(&mut files.add(&files.base, &files.path("link")), 0);
    assert!(fs::symlink_metadata(&files.out).unwrap().is_file());
    assert!(["link", "folder/link"].iter().all(|link| files.path(link).is_symlink()));
    symlink("loop", files.path("loop")).unwrap();
    let line = message(&mut files.add(&files.base, &files.path("loop")), 1);
    let problem = "Too many levels of symbolic links (os error 40)";
    assert_eq!(line, format!("cannot write {}: {problem}", files.path("loop").display()));
}

#[test]
fn a_base_without_an_end_is_refused() {
    let files = Files::new();
    // A reader without a bound would take the machine's memory.
    let mut command = limited("--as=8589934592");
    let line = message(command.arg("/dev/zero").args([files.out.as_path(), Path::new("--agent"), &files.agent]), 1);
    assert_eq!(line, "cannot read /dev/zero: it has more than 1 GiB: name an initramfs");
    File::create(files.path("large")).unwrap().set_len((1 << 30) + 1).unwrap();
    let line = message(&mut files.add(&files.path("large"), &files.out), 1);
    assert!(line.ends_with("large: it has more than 1 GiB: name an initramfs"), "{line}");
    let line = message(add(&files.base, &files.out).arg("--agent").arg("/dev/zero"), 1);
    let expected =
        "cannot read the agent /dev/zero (name a file that is there and can be read): it has more than 64 MiB";
    assert_eq!(line, expected);
}

#[test]
fn a_base_comes_through_a_pipe() {
    let files = Files::new();
    let mut command = files.add("/dev/stdin".as_ref(), &files.out);
    let line = message(command.stdin(File::open(&files.base).unwrap()), 0);
    assert!(line.starts_with("wrote"), "{line}");
    let typed = format!("cat {} | exec \"$@\"", files.base.display());
    let mut command = Command::new("sh");
    command.args(["-c", &typed, "sh", COMMAND, "image", "add", "/dev/stdin"]).arg(&files.out);
    message(command.arg("--agent").arg(&files.agent), 0);
    assert_eq!(mode(&files.out), 0o600, "what comes from a pipe is its reader's");
}

/// A signal while the file is written: the temporary file is an event.
#[test]
fn a_signal_leaves_no_temporary_file() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::USR1] {
        let files = Files::new();
        fs::set_permissions(&files.base, Permissions::from_mode(0o600)).unwrap();
        File::create(&files.agent).unwrap().set_len(32 << 20).unwrap();
        let inotify = inotify::init(CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&inotify, files.folder.path(), WatchFlags::CREATE).unwrap();
        let mut child = files.add(&files.base, &files.out).stderr(Stdio::null()).spawn().unwrap();
        let mut events = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&inotify, &mut events);
        let created = reader.next().unwrap().file_name().unwrap().to_owned();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let created = files.path(created.to_str().unwrap());
        assert!(fs::metadata(created).map_or(true, |file| file.permissions().mode() & 0o077 == 0));
        child.wait().unwrap();
        assert_eq!(files.names(), ["agent", "base", "out"], "{signal:?}");
        assert!(fs::metadata(&files.out).unwrap().len() > 32 << 20 && mode(&files.out) == 0o600, "{signal:?}");
    }
}

#[test]
fn out_is_no_more_readable_than_base() {
    let files = Files::new();
    assert_eq!(files.mode_from(0o600), 0o600);
    fs::set_permissions(&files.out, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(files.mode_from(0o600), 0o600, "a file that was there is no wider");
    fs::set_permissions(&files.out, Permissions::from_mode(0o664)).unwrap();
    assert_eq!(files.mode_from(0o640), 0o640, "the group is the same");
    fs::remove_file(&files.out).unwrap();
    assert_eq!(files.mode_from(0o644) & !0o644, 0);
}

#[test]
fn a_failed_write_leaves_nothing() {
    let files = Files::new();
    fs::write(&files.out, "before").unwrap();
    let mut command = limited("--fsize=100");
    let line = message(command.args([files.base.as_path(), &files.out, Path::new("--agent"), &files.agent]), 1);
    assert_eq!(line, format!("cannot write {}: File too large (os error 27)", files.out.display()));
    assert_eq!(fs::read_to_string(&files.out).unwrap(), "before");
    assert_eq!(files.names(), ["agent", "base", "out"]);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let files = Files::new();
    let nowhere = files.path("no/file");
    let missing = "No such file or directory (os error 2)";
    let line = message(&mut files.add(&nowhere, &files.out), 1);
    assert_eq!(line, format!("cannot read {}: {missing}", nowhere.display()));
    let line = message(&mut files.add(&files.base, &nowhere), 1);
    assert!(line.starts_with(&format!("cannot write {}: {missing}", nowhere.display())), "{line}");
    let line = message(&mut files.add(&files.agent, &files.out), 1);
    let not_an_image = "byte 0 begins neither a newc archive nor data of gzip, xz or zstd: name an initramfs";
    assert_eq!(line, format!("cannot use {}: {not_an_image}", files.agent.display()));
}

#[test]
fn the_carried_agent_is_added() {
    let files = Files::new();
    message(&mut add(&files.base, &files.out), 0);
    let (image, agent) = (fs::read(&files.out).unwrap(), fs::read(agent::file()).unwrap());
    assert!(image.windows(agent.len()).any(|part| part == agent));
}

#[test]
fn an_agent_for_another_architecture_than_the_images_is_named() {
    let files = Files::new();
    // The header of a program is enough.
    let program = |machine: u8| [b"\x7fELF".as_slice(), &[0; 14], &[machine, 0, 1]].concat();
    let base = |machine: u8| {
        let mut image = InitramfsBuilder::new().unwrap();
        image.program("bin/sh", &program(machine)).unwrap();
        image.program("init", b"an init").unwrap();
        image.finish().unwrap()
    };
    fs::write(&files.agent, program(62)).unwrap();
    fs::write(&files.base, base(183)).unwrap();
    let line = message(&mut files.add(&files.base, &files.out), 1);
    let expected = format!("the agent {} is for x86_64, but the guest is for aarch64: name one", files.agent.display());
    assert!(line.starts_with(&expected), "{line}");
    fs::write(&files.base, base(243)).unwrap();
    let line = message(&mut files.add(&files.base, &files.out), 1);
    assert!(line.contains("its shell is for another architecture (ELF machine 243)"), "{line}");
}

/// An image without an agent: an init, modules and a scheduler.
fn foreign_image() -> Vec<u8> {
    let mut image = InitramfsBuilder::new().unwrap();
    for folder in ["proc", "run/scx/root"] {
        image.folder(folder).unwrap();
    }
    image.link("var/run", "/run").unwrap();
    image.link("bin/sh", "busybox").unwrap();
    add_program(&mut image, "busybox", "/bin/busybox".as_ref(), "bin/busybox").unwrap();
    add_program(&mut image, "the scheduler", &program::built("procsched"), "bin/procsched").unwrap();
    let mut init = format!("#!/bin/sh\nbusybox mount -t proc proc /proc\nexport LD_LIBRARY_PATH=/{FOLDER}\n");
    let modules = Modules::read(&Kernel::of_this_run().modules).unwrap();
    for path in modules.in_load_order(VSOCK).unwrap() {
        let file = path.rsplit('/').next().unwrap().trim_end_matches(".xz");
        image.file(&format!("modules/{file}"), &modules.load(path).unwrap()).unwrap();
        init += &format!("busybox insmod /modules/{file}\n");
    }
    init += "exec /bin/procsched\n";
    image.program("init", init.as_bytes()).unwrap();
    image.finish().unwrap()
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn an_agent_added_to_a_foreign_image_serves_stats() {
    let device = BackEnd::serve(COMMAND.as_ref());
    let (base, packed) = (device.folder().join("base"), device.folder().join("base.gz"));
    fs::write(&base, foreign_image()).unwrap();
    assert!(Command::new("gzip").args(["-1", "-k"]).arg(&base).status().unwrap().success());
    let line = message(&mut add(&packed, &packed), 0);
    let printed = format!("$({COMMAND} serve --socket {} --print-qemu-args)", device.socket().display());
    let qemu = TypedQemu::start(&fs::read(&packed).unwrap(), device.folder(), &printed);
    let uri = format!("hybrid:{}", device.hybrid().display());
    let output = Command::new(COMMAND).args(["stats", &uri, "--wait", "120"]).output().unwrap();
    let (numbers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{errors}\n{}", qemu.console());
    assert!(numbers.contains("ctxt"), "{numbers}");
}
