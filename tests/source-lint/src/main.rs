//! Finds cycles of source files, and functions that are too long.

mod associated;
mod cfg;
mod crate_roots;
mod cycles;
mod functions;
mod macro_paths;
mod module_tree;
mod name_table;
mod path_segments;
mod references;
mod report;
mod resolve;
#[cfg(test)]
mod testing;
mod use_tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use report::Report;

const HELP: &str = "\
Finds cycles of source files, and functions of more than 45 lines.

Usage: source-lint [ROOT]...

  ROOT    the root file of a crate, such as src/lib.rs
          [default: those of all packages below the current folder, tests and examples included]

A file refers to each file that defines what its code names: in `use`, in paths and in the arguments of macros, also
where the name comes through a re-export. A module does not refer to its children by re-exporting them. Code that only
tests compile is ignored in cycles; its functions count. Calls of methods are not resolved.

Exit status: 0 if nothing is found, 1 if something is, 2 if a file cannot be read or parsed.
";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if arguments.iter().any(|it| it == Path::new("--help") || it == Path::new("-h")) {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match check(arguments) {
        Ok(report) => {
            print!("{report}");
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("source-lint: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn check(mut roots: Vec<PathBuf>) -> Result<Report> {
    if let Some(option) = roots.iter().find(|root| root.as_os_str().as_encoded_bytes().starts_with(b"-")) {
        bail!("unknown option {}: see source-lint --help", option.display());
    }
    if roots.is_empty() {
        roots = crate_roots::roots_below(Path::new("."))?;
    }
    if roots.is_empty() {
        bail!("no package below the current folder: run it at the root of the workspace");
    }
    let mut report = Report::default();
    for root in &roots {
        let module = module_tree::load(root, &|path| fs::read_to_string(path))?;
        let package = crate_roots::package_of(root)?.unwrap_or_else(|| root.display().to_string());
        report.add(&package, &module);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(arguments: &[&str]) -> String {
        format!("{:#}", check(arguments.iter().map(PathBuf::from).collect()).err().unwrap())
    }

    #[test]
    fn help_states_the_limit() {
        assert!(HELP.contains(&format!("more than {} lines", report::MAX_FUNCTION_LINES)));
    }

    #[test]
    fn this_package_is_clean() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
        let report = check(vec![root]).unwrap();
        assert!(report.is_clean(), "{report}");
    }

    #[test]
    fn unknown_options_are_errors() {
        assert_eq!(error_of(&["--all"]), "unknown option --all: see source-lint --help");
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        assert_eq!(error_of(&["none.rs"]), "cannot read none.rs: No such file or directory (os error 2)");
    }
}
