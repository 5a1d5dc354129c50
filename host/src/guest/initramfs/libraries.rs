//! A program of the host in the guest, with the shared libraries that it needs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use lddtree::DependencyAnalyzer;

use super::build::Image;
use crate::guest::error::Error;

/// The folder of the guest with the host's libraries, to be named in `LD_LIBRARY_PATH`.
pub const FOLDER: &str = "usr/lib/host";

/// Adds a program of the host at `to`. Its interpreter comes to the path that the program names, its libraries into
/// [`FOLDER`]. A script comes alone.
///
/// ```
/// use scx_vsock::guest::initramfs::build::Image;
/// use scx_vsock::guest::initramfs::libraries::{FOLDER, add_program};
///
/// let mut image = Image::new()?;
/// add_program(&mut image, "this program", &std::env::current_exe()?, "bin/tool")?;
/// assert!(image.names().any(|name| name.starts_with(FOLDER) && name.contains("libc.so")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::File`], [`Error::Program`], [`Error::NoLibrary`].
pub fn add_program(image: &mut Image, what: &'static str, program: &Path, to: &str) -> Result<(), Error> {
    image.copy_program(what, program, to)?;
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
        image.copy_program("the library", file, &guest_path(name, interpreter))?;
    }
    Ok(())
}

fn is_script(program: &Path) -> bool {
    let mut beginning = [0; 2];
    File::open(program).and_then(|mut file| file.read_exact(&mut beginning)).is_ok() && beginning == *b"#!"
}

/// The interpreter is also a library that others need by its bare name.
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
    fn a_program_brings_its_interpreter_and_its_libraries() {
        let mut image = Image::new().unwrap();
        add_program(&mut image, "this test", &std::env::current_exe().unwrap(), "bin/test").unwrap();
        let names = image.names();
        let has = |wanted: &str| names.clone().any(|name| name.contains(wanted));
        assert!(has("bin/test") && has("usr/lib/host/libc.so") && has("/ld-"), "{:?}", names.collect::<Vec<_>>());
        assert!(!has("usr/lib/host/ld-"), "the interpreter stands at one place");
    }

    #[test]
    fn a_script_comes_alone_and_other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (script, text) = (folder.path().join("script"), folder.path().join("text"));
        std::fs::write(&script, "#!/bin/sh\ntrue\n").unwrap();
        std::fs::write(&text, "true\n").unwrap();
        let mut image = Image::new().unwrap();
        add_program(&mut image, "the script", &script, "bin/script").unwrap();
        assert!(image.names().eq(["bin", "bin/script", "dev", "dev/console"]));
        let error = add_program(&mut image, "the text", &text, "bin/text").unwrap_err();
        assert!(error.to_string().contains(text.to_str().unwrap()), "{error}");
    }
}
