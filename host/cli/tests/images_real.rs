//! `scx-vsock image add` on images as distributions make them and on made ones of every kind: those that it accepts boot,
//! those that it refuses show why.
//!
//! What a made image's own init and its agent print shows that both ran. They meet at a pipe of the image, and the guest
//! ends when both have been there.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use scx_vsock::guest::initramfs::build::InitramfsBuilder;
use scx_vsock::guest::initramfs::modules::{Modules, VSOCK};
use scx_vsock_tests::agent;
use scx_vsock_tests::guest::Kernel;
use tempfile::TempDir;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_666;
const PIPE: u32 = 0o010_600;

/// An entry of an archive, of which everything can be chosen.
#[derive(Clone)]
struct Entry {
    path: Vec<u8>,
    mode: u32,
    links: u32,
    inode: u32,
    device: u32,
    number: (u32, u32),
    content: Vec<u8>,
    checksum: Option<u32>,
}

impl Entry {
    fn new(path: impl AsRef<[u8]>, mode: u32, content: impl AsRef<[u8]>) -> Self {
        let (path, content) = (path.as_ref().to_vec(), content.as_ref().to_vec());
        Self { path, mode, links: 1, inode: 0, device: 0, number: (0, 0), content, checksum: None }
    }

    fn folder(path: &str) -> Self {
        Self::new(path, FOLDER, "")
    }

    fn link(path: &str, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, LINK, target)
    }

    fn device(path: &str, minor: u32) -> Self {
        Self { number: (1, minor), ..Self::new(path, DEVICE, "") }
    }

    /// An init that prints its name and the agent's, and ends the guest.
    fn init(path: impl AsRef<[u8]>, name: &str) -> Self {
        let busybox = "for busybox in /bin/busybox /usr/bin/busybox; do [ ! -x $busybox ] || break; done";
        let script = format!(
            "#!/bin/busybox sh\n{busybox}\nread agent </sync\necho \"$agent of $0, init {name}\"\n$busybox reboot -f\n"
        );
        Self::new(path, PROGRAM, script)
    }

    fn shared(self, inode: u32, device: u32) -> Self {
        Self { links: 2, inode, device, ..self }
    }

    fn with_checksum(self, wrong_by: u32) -> Self {
        let sum: u32 = self.content.iter().map(|byte| u32::from(*byte)).sum();
        Self { checksum: Some(sum + wrong_by), ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let (magic, size) = (if self.checksum.is_some() { "070702" } else { "070701" }, self.content.len());
        let mut header = magic.to_owned();
        let numbers = [self.inode, self.mode, 0, 0, self.links, 0, u32::try_from(size).unwrap(), 8, self.device];
        let path_size = u32::try_from(self.path.len() + 1).unwrap();
        for number in numbers.into_iter().chain([self.number.0, self.number.1, path_size, self.checksum.unwrap_or(0)]) {
            write!(header, "{number:08x}").unwrap();
        }
        let mut bytes = header.into_bytes();
        bytes.extend(self.path.iter().chain(b"\0"));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(&self.content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

/// Entries without a trailer.
fn entries(entries: &[Entry]) -> Vec<u8> {
    entries.iter().flat_map(Entry::bytes).collect()
}

fn archive(archived: &[Entry]) -> Vec<u8> {
    [entries(archived), Entry::new("TRAILER!!!", 0, "").bytes()].concat()
}

/// What each image has: a shell and the pipe.
fn shell() -> Vec<Entry> {
    let busybox = fs::read("/bin/busybox").unwrap();
    vec![
        Entry::folder("."),
        Entry::new("sync", PIPE, ""),
        Entry::folder("bin"),
        Entry::new("bin/busybox", PROGRAM, busybox),
        Entry::link("bin/sh", "busybox"),
    ]
}

/// An archive with a shell and these entries.
fn with_shell(others: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    archive(&shell().into_iter().chain(others).collect::<Vec<_>>())
}

/// An image that is a shell and an init.
fn plain() -> Vec<u8> {
    with_shell([Entry::init("init", "own")])
}

fn packed(by: &str, bytes: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, bytes).unwrap();
    let arguments: &[&str] = if by == "xz" { &["--check=crc32", "-1", "-c"] } else { &["-1", "-c"] };
    let output = Command::new(by).args(arguments).arg(&file).output().unwrap();
    assert!(output.status.success(), "{by}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    packed("gzip", bytes)
}

/// A boot configuration, with a checksum that is wrong by so much.
fn bootconfig(wrong_by: u32) -> Vec<u8> {
    let text = b"kernel.scx_vsock_test\n\0\0";
    let sum: u32 = text.iter().map(|byte| u32::from(*byte)).sum();
    let size = u32::try_from(text.len()).unwrap();
    [text, &size.to_le_bytes()[..], &(sum + wrong_by).to_le_bytes(), b"#BOOTCONFIG\n"].concat()
}

/// The folder of a test, with an agent that goes to the pipe.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        fs::write(bench.path("agent"), "#!/bin/busybox sh\necho agent >/sync\n").unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds the agent to an image: what is written, or the message.
    fn add(&self, base: &[u8]) -> Result<Vec<u8>, String> {
        fs::write(self.path("base"), base).unwrap();
        let (_, message) = self.add_file(&self.path("agent"))?;
        assert!(message.contains("warning"), "these images have no modules: {message}");
        Ok(fs::read(self.path("out")).unwrap())
    }

    /// Adds an agent to the file `base`: the written file and the messages, or the message.
    fn add_file(&self, agent: &Path) -> Result<(PathBuf, String), String> {
        let (base, out) = (self.path("base"), self.path("out"));
        let output = Command::new(COMMAND)
            .args(["image", "add"])
            .args([&base, &out])
            .arg("--agent")
            .arg(agent)
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok((out, message)) } else { Err(message) }
    }

    /// Boots an image until the guest ends, and returns what it printed.
    fn boot(&self, image: &[u8]) -> String {
        fs::write(self.path("image"), image).unwrap();
        let mut command = qemu(&self.path("image"), "reboot=t");
        let output = command.args(["-serial", "stdio"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    }
}

/// A program that is ended after the time that a guest may take.
fn within_time(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["300", program]).stdin(Stdio::null());
    command
}

/// A QEMU with this run's kernel.
fn qemu(image: &Path, arguments: &str) -> Command {
    let mut command = within_time("qemu-system-x86_64");
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-cpu", "max"]);
    let line = format!("console=ttyS0 quiet panic=-1 no_timer_check {arguments}");
    command.arg("-kernel").arg(&Kernel::of_this_run().image).arg("-initrd").arg(image).arg("-append").arg(line);
    command
}

/// A program of [`within_time`], which is ended on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _status = self.0.wait();
    }
}

/// Adds the agent to an image of this name, boots the result, and expects this init.
fn boots(bench: &Bench, name: &str, base: &[u8], init: &str) {
    let image = bench.add(base).unwrap_or_else(|message| panic!("{name}: {message}"));
    let console = bench.boot(&image);
    let expected = format!("agent of /scx-vsock/init, init {init}\n");
    assert_eq!(console.matches(&expected).count(), 1, "{name}:\n{console}");
    assert!(!console.contains("unpacking failed"), "{name}:\n{console}");
    println!("{name}: boots");
}

fn all_boot(images: Vec<(&str, Vec<u8>, &str)>) {
    let bench = Bench::new();
    for (name, base, init) in images {
        boots(&bench, name, &base, init);
    }
}

#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn images_of_each_layout_boot() {
    let microcode = archive(&[Entry::new("kernel.bin", FILE, "code"), Entry::init("init", "old")]);
    let (shell_entries, init) = (entries(&shell()), archive(&[Entry::init("init", "own")]));
    let checked = shell().into_iter().chain([Entry::init("init", "own")]).map(|entry| entry.with_checksum(0));
    all_boot(vec![
        ("plain", plain(), "own"),
        ("gzip", gzip(&plain()), "own"),
        ("xz", packed("xz", &plain()), "own"),
        ("zstd", packed("zstd", &plain()), "own"),
        ("microcode first", [microcode, vec![0; 512], gzip(&plain())].concat(), "own"),
        ("two compressions", [gzip(&plain()), packed("xz", &init)].concat(), "own"),
        ("zeros between entries", [&shell_entries[..], &[0; 512], &init].concat(), "own"),
        ("zeros between packed entries", gzip(&[&shell_entries[..], &[0; 512], &init].concat()), "own"),
        ("a boot configuration", [plain(), bootconfig(0)].concat(), "own"),
        ("a padded boot configuration", [gzip(&plain()), bootconfig(0), vec![0; 3]].concat(), "own"),
        ("checksums", archive(&checked.collect::<Vec<_>>()), "own"),
    ]);
}

#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn images_with_each_kind_of_init_boot() {
    let own = |path: &str| Entry::init(path, "own");
    let other = |path: &str| Entry::init(path, "other");
    let sbin = || Entry::folder("sbin");
    all_boot(vec![
        ("Latin-1 names", with_shell([Entry::new(b"caf\xe9", FILE, ""), own("init")]), "own"),
        ("a Latin-1 link", with_shell([Entry::init(b"caf\xe9", "own"), Entry::link("init", b"caf\xe9")]), "own"),
        ("a link count without a link", with_shell([own("init").shared(7, 1)]), "own"),
        ("an inode of two devices", with_shell([other("x").shared(7, 1), own("init").shared(7, 2)]), "own"),
        (
            "an inode of two archives",
            [archive(&[other("x").shared(7, 1)]), with_shell([own("init").shared(7, 1)])].concat(),
            "own",
        ),
        ("hard links of others", with_shell([other("x").shared(7, 1), other("y").shared(7, 1), own("init")]), "own"),
        ("bin/../init", with_shell([other("init"), own("bin/../init")]), "own"),
        ("sbin/../init without sbin", with_shell([own("init"), other("sbin/../init")]), "own"),
        ("/./init", with_shell([other("init"), own("/./init")]), "own"),
        ("an init behind a link to a folder", with_shell([Entry::link("root/up", "/"), own("root/up/init")]), "own"),
        ("a later init", [plain(), archive(&[other("init")])].concat(), "other"),
        (
            "a link over an init",
            with_shell([other("init"), sbin(), own("sbin/init"), Entry::link("init", "sbin/init")]),
            "own",
        ),
        ("an init over a link", with_shell([Entry::link("init", "bin/sh"), own("init")]), "own"),
        ("an absolute link", with_shell([sbin(), own("sbin/init"), Entry::link("init", "/sbin/init")]), "own"),
        (
            "a chain of links",
            with_shell([sbin(), own("x"), Entry::link("sbin/init", "../x"), Entry::link("init", "sbin/init")]),
            "own",
        ),
        (
            "a folder that is a link",
            with_shell([Entry::folder("usr"), own("usr/x"), Entry::link("sbin", "usr"), Entry::link("init", "sbin/x")]),
            "own",
        ),
    ]);
}

#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn images_with_each_kind_of_shell_and_null_boot() {
    let own = || Entry::init("init", "own");
    let dev = || Entry::folder("dev");
    let busybox_alone: Vec<Entry> = shell().into_iter().take(4).chain([own()]).collect();
    let folder_as_shell: Vec<Entry> = shell().into_iter().take(4).chain([Entry::folder("bin/sh"), own()]).collect();
    let moved = [Entry::folder("usr"), Entry::folder("usr/bin"), Entry::link("bin", "usr/bin")];
    let merged: Vec<Entry> =
        moved.into_iter().chain(shell().into_iter().filter(|entry| entry.path != b"bin")).chain([own()]).collect();
    all_boot(vec![
        ("busybox without sh", archive(&busybox_alone), "own"),
        ("a folder as sh", archive(&folder_as_shell), "own"),
        ("bin as a link", archive(&merged), "own"),
        ("a file as /dev/null", with_shell([dev(), Entry::new("dev/null", FILE, "text"), own()]), "own"),
        ("another device as /dev/null", with_shell([dev(), Entry::device("dev/null", 5), own()]), "own"),
        ("a folder as /dev/null", with_shell([dev(), Entry::folder("dev/null"), own()]), "own"),
        ("a /dev/null", with_shell([dev(), Entry::device("dev/null", 3), own()]), "own"),
        ("a link as scx-vsock", with_shell([Entry::link("scx-vsock", "bin"), own()]), "own"),
        ("slashes after folders", with_shell([Entry::folder("dev/"), Entry::folder("new/"), own()]), "own"),
    ]);
}

#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn images_with_an_agent_boot_with_the_new_one() {
    let bench = Bench::new();
    let good = fs::read(bench.path("agent")).unwrap();
    fs::write(bench.path("agent"), "#!/bin/busybox sh\necho stale >/sync\n").unwrap();
    let once = bench.add(&plain()).unwrap();
    let alone = once[plain().len().next_multiple_of(4)..].to_vec();
    fs::write(bench.path("agent"), good).unwrap();
    let fresh = bench.add(&plain()).unwrap();
    assert_eq!(bench.add(&once).unwrap(), fresh, "the old agent is gone");
    let put_back = archive(&[Entry::link("init", "scx-vsock/init")]);
    boots(&bench, "an agent", &once, "own");
    boots(&bench, "a packed agent", &[plain(), gzip(&alone)].concat(), "own");
    boots(&bench, "an agent packed with its base", &gzip(&once), "own");
    boots(&bench, "an archive after the agent", &[&once[..], &archive(&[Entry::folder("etc")])].concat(), "own");
    boots(&bench, "an init put back", &[&once[..], &put_back].concat(), "own");
    boots(&bench, "an init after the agent", &[&once[..], &archive(&[Entry::init("init", "other")])].concat(), "other");
}

#[test]
#[ignore = "packs busybox; run ci/test images"]
fn images_that_would_not_boot_are_refused() {
    let bench = Bench::new();
    let init = || Entry::init("init", "own");
    let linked = |target: &str| with_shell([Entry::link("init", target)]);
    let shell_of = |sh: Entry| archive(&[Entry::folder("bin"), sh, init()]);
    let (no_program, no_shell) =
        ("its /init is a link that leads to no program", "it has neither sh nor busybox as a program");
    for (name, base, message) in [
        ("empty", vec![], "it is empty: name an initramfs"),
        ("zeros", vec![0; 4096], "it is 4096 bytes of zeros: name an initramfs"),
        ("text", b"text".to_vec(), "byte 0 begins neither a newc archive nor data of gzip, xz or zstd"),
        ("another format", b"070707000000".to_vec(), "byte 0 begins neither a newc archive"),
        ("lz4", b"\x02\x21\x4c\x18".to_vec(), "byte 0 begins data of lz4: unpack it first"),
        ("truncated", plain()[..4096].to_vec(), "cannot read the archive at byte 0"),
        ("a truncated gzip", gzip(&plain())[..4096].to_vec(), "cannot read the archive at byte 0"),
        ("misaligned", [&[0, 0][..], &plain()].concat(), "is not at a multiple of 4"),
        ("a boot configuration", [plain(), bootconfig(1)].concat(), "it ends in a boot configuration whose size"),
        ("a wrong checksum", with_shell([init().with_checksum(1)]), "a file's checksum is wrong"),
        ("no init", with_shell([]), "it has no /init"),
        ("an init in no folder", with_shell([Entry::init("etc/../init", "own")]), "it has no /init"),
        ("a link to itself", linked("init"), no_program),
        ("a link to the moved init", linked("scx-vsock/init"), no_program),
        ("an empty link", linked(""), no_program),
        ("a link to nothing", linked("sbin/init"), no_program),
        ("a loop of links", with_shell([Entry::link("x", "init"), Entry::link("init", "x")]), no_program),
        ("a folder as init", with_shell([Entry::folder("init")]), "its /init is a folder"),
        ("a device as init", with_shell([Entry::device("init", 3)]), "its /init is a device"),
        (
            "a hard link",
            with_shell([Entry::init("x", "own").shared(7, 1), init().shared(7, 1)]),
            "its /init is a hard link",
        ),
        ("a folder as the shell", shell_of(Entry::folder("bin/sh")), no_shell),
        ("a device as the shell", shell_of(Entry::device("bin/sh", 3)), no_shell),
        ("a shell that is not there", shell_of(Entry::link("bin/sh", "busybox")), no_shell),
        ("an init as the shell", shell_of(Entry::link("bin/sh", "/init")), no_shell),
        ("a shell in no folder", archive(&[Entry::new("bin/sh", PROGRAM, "sh"), init()]), no_shell),
    ] {
        let refusal = bench.add(&base).expect_err(name);
        assert!(refusal.contains(message) && refusal.lines().count() == 1, "{name}: {refusal}");
        println!("{name}: {}", refusal.trim_end());
        assert!(!bench.path("out").exists(), "{name}");
    }
}

/// Adds the agent's file to an image of a distribution, boots it with these arguments for the kernel, and asks the agent.
/// Returns what `image add` said.
fn answers(bench: &Bench, arguments: &str) -> String {
    let (image, messages) = bench.add_file(agent::file()).unwrap();
    let [socket, hybrid, console] = ["socket", "hybrid", "console"].map(|name| bench.path(name));
    let mut serve = within_time(COMMAND);
    serve.args(["serve", "--socket"]).arg(&socket).arg("--hybrid").arg(&hybrid).stderr(Stdio::piped());
    let mut serve = Running(serve.spawn().unwrap());
    let mut events = BufReader::new(serve.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(events.next().unwrap().contains("waiting for QEMU"));
    let printed = Command::new(COMMAND).args(["serve", "--print-qemu-args", "--socket"]).arg(&socket).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let mut qemu = qemu(&image, arguments);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(printed.split_whitespace());
    let _qemu = Running(qemu.spawn().unwrap());
    let is_ready = events.any(|event| event.contains("the guest's agent is ready"));
    assert!(is_ready, "{messages}{}", fs::read_to_string(&console).unwrap());
    let uri = format!("hybrid:{}", hybrid.display());
    let output = Command::new(COMMAND).args(["stats", &uri]).output().unwrap();
    // The agent says that the guest has no scheduler.
    assert_eq!(output.status.code(), Some(11), "{}", String::from_utf8_lossy(&output.stderr));
    messages
}

/// Runs a script where `/lib/modules` and `/boot` have this run's kernel, in a mount namespace of its own.
fn with_kernel(script: &str) {
    let kernel = Kernel::of_this_run();
    let (modules, config) = (kernel.modules.parent().unwrap().display(), kernel.config.display());
    let line = format!(
        "mkdir -p /lib/modules /boot && mount --bind {modules} /lib/modules && mount -t tmpfs tmpfs /boot && \
         cp {config} /boot/config-{} && {script}",
        kernel.release()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &line]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn an_image_of_update_initramfs_answers() {
    let (bench, release) = (Bench::new(), Kernel::of_this_run().release());
    let (base, settings) = (bench.path("base"), bench.path("settings"));
    let copy = format!("cp -a /etc/initramfs-tools {}", settings.display());
    let make = format!("mkinitramfs -d {} -o {} {release}", settings.display(), base.display());
    with_kernel(&format!("{copy} && {make}"));
    let (_, messages) = bench.add_file(agent::file()).unwrap();
    assert!(
        messages.contains("has no kernel module") && messages.contains("vmw_vsock_virtio_transport:"),
        "{messages}"
    );
    let add = format!("echo vmw_vsock_virtio_transport >>{}/modules", settings.display());
    with_kernel(&format!("{add} && {make}"));
    let messages = answers(&bench, "break=premount");
    assert!(!messages.contains("warning"), "{messages}");
}

#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn an_image_of_dracut_answers() {
    let (bench, kernel) = (Bench::new(), Kernel::of_this_run());
    let (modules, base, release) = (kernel.modules.display(), bench.path("base"), kernel.release());
    let drivers = "--add-drivers 'virtio_pci vmw_vsock_virtio_transport'";
    with_kernel(&format!("dracut --force --no-hostonly --kmoddir {modules} {drivers} {} {release}", base.display()));
    let messages = answers(&bench, "root=/dev/vda rd.retry=600 rd.timeout=0");
    assert!(!messages.contains("warning"), "{messages}");
}

/// A hand-made image, with the modules that the guide names in its order.
#[test]
#[ignore = "boots QEMU guests; run ci/test images"]
fn an_image_of_busybox_answers() {
    let bench = Bench::new();
    let mut image = InitramfsBuilder::new().unwrap();
    image.link("bin/sh", "busybox").unwrap();
    image.copy_program("busybox", "/bin/busybox".as_ref(), "bin/busybox").unwrap();
    let mut init = "#!/bin/sh\n".to_owned();
    let modules = Modules::read(&Kernel::of_this_run().modules).unwrap();
    let in_order = modules.in_load_order(VSOCK).unwrap();
    let names = in_order.iter().map(|path| path.rsplit('/').next().unwrap().trim_end_matches(".xz"));
    let guide = fs::read_to_string(agent::repository().join("host/guide/images.md")).unwrap();
    for (path, file) in in_order.iter().zip(names) {
        image.file(&format!("modules/{file}"), &modules.load(path).unwrap()).unwrap();
        writeln!(init, "busybox insmod /modules/{file}").unwrap();
        assert!(guide.contains(&format!("`{}`", file.trim_end_matches(".ko"))), "{file} is not in the guide");
    }
    init += "exec sh -c 'while read line; do :; done </sync'\n";
    image.program("init", init.as_bytes()).unwrap();
    let image = [image.finish().unwrap(), archive(&[Entry::new("sync", PIPE, "")])].concat();
    fs::write(bench.path("base"), gzip(&image)).unwrap();
    let messages = answers(&bench, "");
    assert!(!messages.contains("warning"), "{messages}");
}
