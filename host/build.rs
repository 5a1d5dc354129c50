//! Builds the agent's program, which the library carries where it boots guests and makes images.
//!
//! The program is freestanding, so that it needs a profile and a link of its own. A nested cargo builds it, on a manifest
//! that is written here: nested on the agent's own manifest, cargo needs the dependencies of its tests, which a vendored
//! tree does not have, and writes to its lock file.
//!
//! What is carried is the program for the target's architecture, and for the other one where its standard library is
//! installed. `SCX_VSOCK_AGENT` names a program to carry instead of all of these. `ci/build-agent` runs this as well.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// An architecture of guests.
struct Architecture {
    name: &'static str,
    /// The machine in the header of a program for it.
    elf_machine: u16,
    /// The target that it is built for where that is not the target of the library.
    target: &'static str,
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture { name: "x86_64", elf_machine: 62, target: "x86_64-unknown-linux-gnu" },
    Architecture { name: "aarch64", elf_machine: 183, target: "aarch64-unknown-linux-gnu" },
];

const PROGRAM: &str = "scx-vsock-agent";

/// Its own workspace, so that nothing around the output folder takes part.
const MANIFEST: &str = r#"[package]
name = "scx-vsock-agent-build"
version = "0.0.0"
edition = "2024"

[lib]
path = "lib.rs"

[dependencies]
scx-vsock-agent = { path = PATH, features = ["freestanding"] }

[profile.agent]
inherits = "release"
opt-level = "z"
lto = "fat"
codegen-units = 1
panic = "abort"
strip = true
debug = false
incremental = false

[workspace]
"#;

/// Flags of the compiler for all of the program's crates, which make it smaller: constants are pushed and popped where no
/// red zone is in the way, and a chain of comparisons is shorter than a table of eight bytes an entry.
const FLAGS: [&str; 2] = ["-Cno-redzone=yes", "-Cjump-tables=no"];

/// Variables that are for the build around this one. Those of `CARGO_TARGET_` include the target folder, whose lock that
/// build holds.
const OUTER: [&str; 6] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "SCX_VSOCK_AGENT",
];
const OUTER_PREFIXES: [&str; 3] = ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"];

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_QEMU").is_none() {
        return ExitCode::SUCCESS;
    }
    match carry() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Puts the program of each architecture into the output folder, as `ARCHITECTURE/scx-vsock-agent`. A program that is not
/// carried is an empty file.
fn carry() -> Result<()> {
    println!("cargo::rerun-if-env-changed=SCX_VSOCK_AGENT");
    let out = path("OUT_DIR")?;
    let given = env::var_os("SCX_VSOCK_AGENT").filter(|path| !path.is_empty()).map(Given::read).transpose()?;
    let builds = given.is_none() && env::var_os("DOCS_RS").is_none();
    let build = builds.then(Build::prepare).transpose()?;
    for architecture in &ARCHITECTURES {
        let program = match (&given, &build) {
            (Some(given), _) if given.elf_machine == architecture.elf_machine => given.bytes.clone(),
            (None, Some(build)) => build.program(architecture)?,
            _ => Vec::new(),
        };
        replace(&out.join(architecture.name).join(PROGRAM), &program)?;
    }
    Ok(())
}

/// A program that was built before.
struct Given {
    bytes: Vec<u8>,
    elf_machine: u16,
}

impl Given {
    fn read(path: OsString) -> Result<Self> {
        let path = PathBuf::from(path);
        println!("cargo::rerun-if-changed={}", path.display());
        let bytes = fs::read(&path).map_err(|error| {
            format!("cannot read {} (set SCX_VSOCK_AGENT to the agent's file): {error}", path.display())
        })?;
        let elf_machine = match bytes.get(..20) {
            Some(&[0x7f, b'E', b'L', b'F', .., low, high]) => Some(u16::from_le_bytes([low, high])),
            _ => None,
        };
        match elf_machine {
            Some(elf_machine) if ARCHITECTURES.iter().any(|known| known.elf_machine == elf_machine) => {
                Ok(Self { bytes, elf_machine })
            }
            _ => Err(format!(
                "{} is no program for x86_64 or aarch64: set SCX_VSOCK_AGENT to the agent's file",
                path.display()
            )),
        }
    }
}

/// What each build needs to know.
struct Build {
    out: PathBuf,
    /// The agent's package.
    agent: PathBuf,
    cargo: PathBuf,
    rustc: PathBuf,
    /// The target and the host of the build around this one.
    target: String,
    host: String,
}

impl Build {
    fn prepare() -> Result<Self> {
        let agent = path("DEP_SCX_VSOCK_AGENT_MANIFEST_DIR")?;
        for name in ["Cargo.toml", "freestanding.ld", "src"] {
            println!("cargo::rerun-if-changed={}", agent.join(name).display());
        }
        let build = Self {
            out: path("OUT_DIR")?,
            agent,
            cargo: path("CARGO")?,
            rustc: path("RUSTC")?,
            target: text("TARGET")?,
            host: text("HOST")?,
        };
        // In the repository. The packages of a registry do not change.
        let wire = build.agent.join("../shared");
        if wire.is_dir() {
            println!("cargo::rerun-if-changed={}", wire.join("src").display());
        }
        // Rustup's list of what is installed.
        let components = build.sysroot()?.join("lib/rustlib/components");
        if components.is_file() {
            println!("cargo::rerun-if-changed={}", components.display());
        }
        build.write_package()?;
        Ok(build)
    }

    fn package(&self) -> PathBuf {
        self.out.join("package")
    }

    fn write_package(&self) -> Result<()> {
        // A TOML string escapes as Rust's does, in what a path can have.
        let manifest = MANIFEST.replace("PATH", &format!("{:?}", self.agent.display().to_string()));
        replace(&self.package().join("Cargo.toml"), manifest.as_bytes())?;
        replace(&self.package().join("lib.rs"), b"#![no_std]\n")
    }

    /// Returns the program for this architecture; nothing if it is not the target's and cannot be built here.
    fn program(&self, architecture: &Architecture) -> Result<Vec<u8>> {
        if self.target.split('-').next() == Some(architecture.name) {
            return self.build(architecture, &self.target);
        }
        if !self.print(&["target-libdir", "--target", architecture.target])?.is_dir() {
            return Ok(Vec::new());
        }
        self.build(architecture, architecture.target).or_else(|error| {
            println!("cargo::warning=the agent for {} is not carried: {error}", architecture.name);
            Ok(Vec::new())
        })
    }

    fn build(&self, architecture: &Architecture, target: &str) -> Result<Vec<u8>> {
        let lock = self.package().join("Cargo.lock");
        let repositorys = self.agent.join("../Cargo.lock");
        // The repository's versions, if cargo has them here; else those that it has.
        let locked = repositorys.is_file() && fs::copy(&repositorys, &lock).is_ok();
        if locked && self.cargo(architecture, target).is_ok() {
            return self.built(target);
        }
        let _none = fs::remove_file(&lock);
        self.cargo(architecture, target)?;
        self.built(target)
    }

    fn built(&self, target: &str) -> Result<Vec<u8>> {
        let file = self.out.join("target").join(target).join("agent").join(PROGRAM);
        let program = fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        without_sections(program).ok_or_else(|| format!("{} is no ELF program of 64 bits", file.display()))
    }

    fn cargo(&self, architecture: &Architecture, target: &str) -> Result<()> {
        let mut command = Command::new(&self.cargo);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if OUTER.contains(&&*text) || OUTER_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        // Instead of those of cargo's configuration.
        command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
        // A target is named always. Without one, flags are also for build scripts.
        command.args([
            "rustc",
            "--quiet",
            "--offline",
            "--profile",
            "agent",
            "-p",
            PROGRAM,
            "--bin",
            PROGRAM,
            "--target",
            target,
        ]);
        command.arg("--manifest-path").arg(self.package().join("Cargo.toml"));
        command.arg("--target-dir").arg(self.out.join("target"));
        command
            .args(["--", "-Crelocation-model=static", "-Cforce-unwind-tables=no"])
            .args(self.link_arguments(architecture)?);
        let status = command
            .stdout(io::stderr())
            .status()
            .map_err(|error| format!("cannot run {}: {error}", self.cargo.display()))?;
        if status.success() { Ok(()) } else { Err(format!("cargo cannot build {PROGRAM} for {target} ({status})")) }
    }

    /// The arguments of a link by the linker itself: the compiler's own where it has one, which links for every
    /// architecture, else the system's.
    fn link_arguments(&self, architecture: &Architecture) -> Result<Vec<String>> {
        let own = self.sysroot()?.join("lib/rustlib").join(&self.host).join("bin/rust-lld");
        let (linker, flavor) = match architecture {
            _ if own.is_file() => (own.display().to_string(), "ld.lld"),
            Architecture { name, .. } if self.host.starts_with(name) => ("ld".into(), "ld"),
            Architecture { name, .. } => (format!("{name}-linux-gnu-ld"), "ld"),
        };
        let script = format!("-T{}", self.agent.join("freestanding.ld").display());
        let fixed = ["-static", "--build-id=none", "--no-eh-frame-hdr", "-znorelro", "-zmax-page-size=65536"];
        let arguments = fixed.iter().copied().chain([script.as_str()]).map(|argument| format!("-Clink-arg={argument}"));
        Ok([format!("-Clinker={linker}"), format!("-Clinker-flavor={flavor}")].into_iter().chain(arguments).collect())
    }

    fn sysroot(&self) -> Result<PathBuf> {
        self.print(&["sysroot"])
    }

    /// Returns a path that the compiler prints.
    fn print(&self, what: &[&str]) -> Result<PathBuf> {
        let output = Command::new(&self.rustc).arg("--print").args(what).output();
        let output = output.map_err(|error| format!("cannot run {}: {error}", self.rustc.display()))?;
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
    }
}

/// Cuts off what follows the last segment: the table of sections and their names, which a kernel does not read. Not every
/// linker can leave them out.
fn without_sections(mut program: Vec<u8>) -> Option<Vec<u8>> {
    // Where an ELF header has the segments' table, the size of its entries and their number.
    const SEGMENTS: usize = 0x20;
    const SEGMENT_BYTES: usize = 0x36;
    const SEGMENTS_COUNT: usize = 0x38;
    // Where an entry has the segment's place and its size in the file.
    const OFFSET: usize = 0x08;
    const FILE_BYTES: usize = 0x20;
    let number = |at: usize, bytes: usize| {
        let mut number = [0; 8];
        number.get_mut(..bytes)?.copy_from_slice(program.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    let (table, bytes, count) = (number(SEGMENTS, 8)?, number(SEGMENT_BYTES, 2)?, number(SEGMENTS_COUNT, 2)?);
    let mut end = table + bytes * count;
    for segment in (0..count).map(|index| table + bytes * index) {
        end = end.max(number(segment + OFFSET, 8)? + number(segment + FILE_BYTES, 8)?);
    }
    program.truncate(end);
    // Where the sections' table is; and its entries' number, with the number of the entry of their names.
    for range in [0x28..0x30, 0x3c..0x40] {
        program.get_mut(range)?.fill(0);
    }
    Some(program)
}

/// Writes a file as a program, unless it is there with these bytes: nothing is built again, and a copy that runs stays.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        let new = path.with_extension("new");
        fs::write(&new, bytes)?;
        make_executable(&new)?;
        fs::rename(&new, path)
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

fn path(variable: &str) -> Result<PathBuf> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("cargo sets no {variable}"))
}

fn text(variable: &str) -> Result<String> {
    env::var(variable).map_err(|error| format!("{variable}: {error}"))
}
