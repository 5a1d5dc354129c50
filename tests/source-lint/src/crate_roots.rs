//! The root files of the crates below a folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders whose files and subfolders with `main.rs` are each a crate.
const FOLDERS: [&str; 4] = ["src/bin", "tests", "examples", "benches"];

/// The roots of each package below this folder, but for build output and hidden folders.
///
/// # Errors
///
/// A folder or manifest that cannot be read.
pub fn roots_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    if package_name(folder)?.is_some() {
        let files = ["build.rs", "src/lib.rs", "src/main.rs"].map(|file| folder.join(file));
        roots.extend(files.into_iter().filter(|file| file.is_file()));
        for name in FOLDERS {
            roots.extend(targets_in(&folder.join(name))?);
        }
    }
    for subfolder in entries(folder)?.iter().filter(|entry| entry.is_dir() && !is_skipped(entry)) {
        roots.extend(roots_below(subfolder)?);
    }
    Ok(roots)
}

/// The name of the package that a file belongs to.
///
/// # Errors
///
/// A manifest that cannot be read.
pub fn package_of(file: &Path) -> Result<Option<String>> {
    for folder in file.ancestors().skip(1) {
        if let Some(name) = package_name(folder)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The name of the package whose manifest is in this folder.
fn package_name(folder: &Path) -> Result<Option<String>> {
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let package = text.lines().skip_while(|line| line.trim() != "[package]");
    let mut values = package.filter_map(|line| line.strip_prefix("name")?.trim_start().strip_prefix('='));
    Ok(values.next().map(|value| value.trim().trim_matches('"').to_owned()))
}

fn targets_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let targets = entries(folder)?.into_iter().map(|entry| if entry.is_dir() { entry.join("main.rs") } else { entry });
    Ok(targets.filter(|file| file.is_file() && file.extension().is_some_and(|it| it == "rs")).collect())
}

/// What is in a folder, by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut entries = read().with_context(|| format!("cannot read {}", folder.display()))?;
    // Paths as a person would write them.
    entries = entries.iter().map(|entry| entry.strip_prefix(".").unwrap_or(entry).to_owned()).collect();
    entries.sort();
    Ok(entries)
}

/// Whether nothing of the workspace is in a folder: it is hidden, or has build output, which a tag marks.
fn is_skipped(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        || folder.join("CACHEDIR.TAG").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_have_their_roots() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(roots_below(folder).unwrap(), [folder.join("src/main.rs")]);
    }

    #[test]
    fn subfolders_with_packages_are_searched() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let roots = roots_below(folder).unwrap();
        for file in ["src/lib.rs", "source-lint/src/main.rs", "src/bin/bench/main.rs", "tests/client.rs"] {
            assert!(roots.contains(&folder.join(file)), "{file} is not in {roots:?}");
        }
    }

    #[test]
    fn files_belong_to_the_nearest_package() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
        assert_eq!(package_of(&file).unwrap().as_deref(), Some("scx-vsock-source-lint"));
    }
}
