//! Programs of the host in the guest, with the shared libraries that they need.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use lddtree::DependencyAnalyzer;

use super::build::InitramfsBuilder;
use crate::guest::error::Error;

/// The guest's folder with the host's libraries, for `LD_LIBRARY_PATH`.
pub const FOLDER: &str = "usr/lib/host";

/// Adds a program of the host at `to`, its interpreter at the path that the program names, and its libraries in
/// [`FOLDER`]. A script is added without its interpreter. `what` names the program in errors.
///
/// ```
/// use scx_vsock::guest::initramfs::build::InitramfsBuilder;
/// use scx_vsock::guest::initramfs::libraries::{FOLDER, add_program};
///
/// let mut initramfs = InitramfsBuilder::new()?;
/// add_program(&mut initramfs, "this program", &std::env::current_exe()?, "bin/tool")?;
/// assert!(initramfs.paths().any(|path| path.starts_with(FOLDER) && path.contains("libc.so")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::File`], [`Error::Program`], [`Error::NoLibrary`].
pub fn add_program(
    initramfs: &mut InitramfsBuilder,
    what: &'static str,
    program: &Path,
    to: &str,
) -> Result<(), Error> {
    initramfs.copy_program(what, program, to)?;
    if is_script(program) {
        return Ok(());
    }
    let tree = DependencyAnalyzer::new("/".into())
        .analyze(program)
        .map_err(|error| Error::Program { program: program.into(), reason: error.to_string() })?;
    let interpreter = tree.interpreter.as_deref();
    for (name, library) in &tree.libraries {
        let Some(file) = &library.realpath else {
            return Err(Error::NoLibrary { program: program.into(), library: name.clone() });
        };
        initramfs.copy_program("the library", file, &guest_path(name, interpreter))?;
    }
    Ok(())
}

fn is_script(program: &Path) -> bool {
    let mut beginning = [0; 2];
    File::open(program).and_then(|mut file| file.read_exact(&mut beginning)).is_ok() && beginning == *b"#!"
}

/// Returns the path of a library in the guest. The interpreter is also a library, which others need by its bare name.
fn guest_path(name: &str, interpreter: Option<&str>) -> String {
    match interpreter {
        Some(path) if path.rsplit('/').next() == Some(name) => path.to_owned(),
        _ if name.contains('/') => name.to_owned(),
        _ => format!("{FOLDER}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries() {
        let mut initramfs = InitramfsBuilder::new().unwrap();
        add_program(&mut initramfs, "this test", &std::env::current_exe().unwrap(), "bin/test").unwrap();
        let paths = initramfs.paths();
        let has = |wanted: &str| paths.clone().any(|path| path.contains(wanted));
        assert!(has("bin/test") && has("usr/lib/host/libc.so") && has("/ld-"), "{:?}", paths.collect::<Vec<_>>());
        assert!(!has("usr/lib/host/ld-"), "the interpreter is in one place");
    }

    #[test]
    fn scripts_come_alone_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (script, text) = (folder.path().join("script"), folder.path().join("text"));
        std::fs::write(&script, "#!/bin/sh\ntrue\n").unwrap();
        std::fs::write(&text, "true\n").unwrap();
        let mut initramfs = InitramfsBuilder::new().unwrap();
        add_program(&mut initramfs, "the script", &script, "bin/script").unwrap();
        assert!(initramfs.paths().eq(["bin", "bin/script", "dev", "dev/console"]));
        let error = add_program(&mut initramfs, "the text", &text, "bin/text").unwrap_err();
        assert!(error.to_string().contains(text.to_str().unwrap()), "{error}");
    }
}
