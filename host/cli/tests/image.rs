//! `scx-vsock image` as a process: its messages and files, and a guest whose image has nothing of ours but the agent.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

/// The one line that a command prints. It must end with this exit code.
fn message(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stderr.lines().count(), stdout.len()), (Some(code), 1, 0), "{stderr}");
    stderr.trim_end().strip_prefix("scx-vsock: ").unwrap().to_owned()
}

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
        image.link("bin/sh", "busybox").unwrap();
        image.program("init", b"an init").unwrap();
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
    assert_eq!(fs::read_dir(files.folder.path()).unwrap().count(), 3, "a temporary file is left");
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
    let mut command = Command::new("prlimit");
    command.arg("--fsize=100").arg(COMMAND).args(["image", "add"]).args([&files.base, &files.out]);
    let line = message(command.arg("--agent").arg(&files.agent), 1);
    assert_eq!(line, format!("cannot write {}: File too large (os error 27)", files.out.display()));
    assert_eq!(fs::read_to_string(&files.out).unwrap(), "before");
    assert_eq!(fs::read_dir(files.folder.path()).unwrap().count(), 3, "a temporary file is left");
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
    let line = message(&mut add(&files.base, &files.out), 1);
    assert!(line.contains("the agent's file") && line.contains("SCX_VSOCK_AGENT"), "{line}");
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
    for (n, path) in modules.in_load_order(VSOCK).unwrap().into_iter().enumerate() {
        image.file(&format!("modules/{n}.ko"), &modules.load(path).unwrap()).unwrap();
        init += &format!("busybox insmod /modules/{n}.ko\n");
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
    let line = message(add(&packed, &packed).arg("--agent").arg(agent::file()), 0);
    let printed = format!("$({COMMAND} serve --socket {} --print-qemu-args)", device.socket().display());
    let qemu = TypedQemu::start(&fs::read(&packed).unwrap(), device.folder(), &printed);
    let uri = format!("hybrid:{}", device.hybrid().display());
    let output = Command::new(COMMAND).args(["stats", &uri, "--wait", "120"]).output().unwrap();
    let (numbers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{errors}\n{}", qemu.console());
    assert!(numbers.contains("ctxt"), "{numbers}");
}
