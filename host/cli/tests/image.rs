//! `scx-vsock image` as a process: what it says, and a guest with nothing of ours in its image but what it added.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use scx_vsock::guest::initramfs::build::Image;
use scx_vsock::guest::initramfs::libraries::{FOLDER, add_program};
use scx_vsock::guest::initramfs::modules::{Modules, VSOCK};
use scx_vsock_tests::agent;
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::guest::{Kernel, TypedQemu};
use scx_vsock_tests::program;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

fn add(base: &Path, out: &Path) -> Command {
    let mut command = Command::new(COMMAND);
    command.args(["image", "add"]).args([base, out]).env_remove("SCX_VSOCK_AGENT").stdin(Stdio::null());
    command
}

/// The one line that a command says, which must end with this code.
fn said(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stderr.lines().count(), stdout.len()), (Some(code), 1, 0), "{stderr}");
    stderr.trim_end().strip_prefix("scx-vsock: ").unwrap().to_owned()
}

#[test]
fn what_it_made_is_told_and_what_it_cannot_do_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (base, out, agent) = (path("base"), path("out"), path("agent"));
    let mut image = Image::new().unwrap();
    image.link("bin/sh", "busybox").unwrap();
    image.program("init", b"an init").unwrap();
    fs::write(&base, image.finish().unwrap()).unwrap();
    fs::write(&agent, "an agent").unwrap();

    let line = said(add(&base, &out).arg("--agent").arg(&agent), 0);
    let more = fs::metadata(&out).unwrap().len() - fs::metadata(&base).unwrap().len();
    let [base, out] = [&base, &out].map(|path| path.to_str().unwrap());
    let told = "its /init starts /scx-vsock/agent and becomes /scx-vsock/init";
    assert_eq!(line, format!("{out}: {more} bytes more than {base}; {told}"));
    assert!(fs::read(out).unwrap().starts_with(&fs::read(base).unwrap()));

    let [mode, usual] = [out, base].map(|path| fs::metadata(path).unwrap().permissions().mode());
    assert_eq!(mode, usual);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "what was written meanwhile has another name now");

    let secret = Permissions::from_mode(0o600);
    fs::set_permissions(out, secret.clone()).unwrap();
    symlink("out", path("link")).unwrap();
    said(add(base.as_ref(), &path("link")).arg("--agent").arg(&agent), 0);
    assert_eq!(fs::metadata(out).unwrap().permissions().mode(), secret.mode() | 0o100_000);
    assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink());
    let printed = add(base.as_ref(), "/dev/stdout".as_ref()).arg("--agent").arg(&agent).output().unwrap();
    assert_eq!(printed.stdout, fs::read(out).unwrap());

    let nowhere = path("no/file");
    let line = said(add(&nowhere, out.as_ref()).arg("--agent").arg(&agent), 1);
    assert!(line.starts_with(&format!("cannot read {} (name a file", nowhere.display())), "{line}");
    let line = said(add(base.as_ref(), &nowhere).arg("--agent").arg(&agent), 1);
    assert!(line.starts_with(&format!("cannot write {} (name a file", nowhere.display())), "{line}");
    let line = said(add(&agent, out.as_ref()).arg("--agent").arg(&agent), 1);
    assert_eq!(
        line,
        format!(
            "cannot use {}: byte 0 begins neither a newc archive nor data of gzip, xz or zstd: name an initramfs",
            agent.display()
        )
    );
    let line = said(&mut add(base.as_ref(), out.as_ref()), 1);
    assert!(line.contains("build it with ci/build-agent and set SCX_VSOCK_AGENT"), "{line}");
}

/// An image of somebody who knows nothing of the agent: an init, modules, a scheduler.
fn foreign_image() -> Vec<u8> {
    let mut image = Image::new().unwrap();
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
fn a_guest_of_a_foreign_image_gives_numbers_once_the_agent_was_added() {
    let device = BackEnd::serve(COMMAND.as_ref());
    let (base, packed) = (device.folder().join("base"), device.folder().join("base.gz"));
    fs::write(&base, foreign_image()).unwrap();
    assert!(Command::new("gzip").args(["-1", "-k"]).arg(&base).status().unwrap().success());
    let line = said(add(&packed, &packed).arg("--agent").arg(agent::file()), 0);
    let printed = format!("$({COMMAND} serve --socket {} --print-qemu-args)", device.socket().display());
    let qemu = TypedQemu::start(&fs::read(&packed).unwrap(), device.folder(), &printed);
    let uri = format!("hybrid:{}", device.hybrid().display());
    let output = Command::new(COMMAND).args(["stats", &uri, "--wait", "120"]).output().unwrap();
    let (numbers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{errors}\n{}", qemu.console());
    assert!(numbers.contains("ctxt"), "{numbers}");
}
