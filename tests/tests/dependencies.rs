//! `ci/dependencies`: what it finds in workspaces that are made to have a fault.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use scx_vsock_tests::agent::repository;
use tempfile::TempDir;

/// A crate of a workspace: its folder, its manifest after the name, and what it depends on, by folder.
struct Package {
    folder: String,
    fields: &'static str,
    dependencies: Vec<String>,
}

impl Package {
    fn new(folder: impl Into<String>, fields: &'static str) -> Self {
        Self { folder: folder.into(), fields, dependencies: Vec::new() }
    }

    /// The crate whose dependencies are counted.
    fn client(dependencies: impl IntoIterator<Item = String>) -> Self {
        let fields = "name = 'scx-vsock'\nversion = '0.1.0'\nlicense = 'Apache-2.0 OR MIT'";
        Self { dependencies: dependencies.into_iter().collect(), ..Self::new("client", fields) }
    }

    fn write(&self, workspace: &Path) {
        let folder = workspace.join(&self.folder);
        fs::create_dir_all(folder.join("src")).unwrap();
        fs::write(folder.join("src/lib.rs"), "").unwrap();
        let fields = self.fields.replace("FOLDER", &self.folder);
        let dependencies: String = self.dependencies.iter().map(|other| dependency(workspace, other)).collect();
        fs::write(folder.join("Cargo.toml"), format!("[package]\n{fields}\n[dependencies]\n{dependencies}")).unwrap();
    }
}

/// A line of a manifest. The key is the folder, so that two versions of one crate have a key each.
fn dependency(workspace: &Path, folder: &str) -> String {
    let manifest = fs::read_to_string(workspace.join(folder).join("Cargo.toml")).unwrap();
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = ")).unwrap();
    format!("{folder} = {{ path = '../{folder}', package = {name} }}\n")
}

/// Runs the script on a workspace of these crates. Returns what it prints where it finds something.
fn findings(packages: &[Package]) -> Result<(), String> {
    let workspace: TempDir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // A workspace has no two members of one name.
    let manifest = "[workspace]\nresolver = '3'\nmembers = ['client']\nexclude = ['next']\n";
    fs::write(workspace.path().join("Cargo.toml"), manifest).unwrap();
    packages.iter().for_each(|package| package.write(workspace.path()));
    let lock = Command::new("cargo").args(["generate-lockfile", "--offline"]).current_dir(&workspace).output().unwrap();
    assert!(lock.status.success(), "{lock:?}");
    let output = Command::new(repository().join("ci/dependencies")).arg(workspace.path()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    if output.status.success() { Ok(()) } else { Err(printed) }
}

const MIT: &str = "name = 'FOLDER'\nversion = '1.0.0'\nlicense = 'MIT'";

#[test]
fn licences_that_leave_users_every_choice_pass() {
    let both = "name = 'both'\nversion = '1.0.0'\nlicense = '(MIT OR Apache-2.0) AND Unicode-3.0'";
    let old = "name = 'old'\nversion = '1.0.0'\nlicense = 'MIT/Apache-2.0'";
    let packages = [Package::new("both", both), Package::new("old", old)];
    let client = Package::client(packages.iter().map(|package| package.folder.clone()));
    assert_eq!(findings(&packages.into_iter().chain([client]).collect::<Vec<_>>()), Ok(()));
}

#[test]
fn a_crate_under_the_gpl_is_found() {
    for licence in ["license = 'GPL-2.0-only'", "license = 'MIT AND LGPL-3.0'", ""] {
        let fields: &str = format!("name = 'other'\nversion = '1.0.0'\n{licence}").leak();
        let printed = findings(&[Package::new("other", fields), Package::client(["other".into()])]).unwrap_err();
        assert!(printed.starts_with("other v1.0.0 ") && printed.contains("use another crate"), "{printed}");
    }
}

#[test]
fn a_crate_in_two_versions_is_found() {
    let next = "name = 'twice'\nversion = '2.0.0'\nlicense = 'MIT'";
    let packages =
        [Package::new("twice", MIT), Package::new("next", next), Package::client(["twice".into(), "next".into()])];
    let printed = findings(&packages).unwrap_err();
    assert!(printed.starts_with("twice is there in two versions"), "{printed}");
}

#[test]
fn a_client_with_more_crates_than_the_guide_has_is_found() {
    let others: Vec<String> = (0..30).map(|n| format!("crate{n}")).collect();
    let mut packages: Vec<Package> = others.iter().map(|name| Package::new(name, MIT)).collect();
    packages.push(Package::client(others));
    let printed = findings(&packages).unwrap_err();
    assert!(printed.starts_with("the client alone has 31 crates, more than "), "{printed}");
}
