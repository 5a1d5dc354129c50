//! One run of many: a kernel, a scheduler, and which repetition it is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::Result;

use super::suite_file::{Kernel, Scheduler, SuiteFile};
use crate::error_report::wrong_arguments;

/// A run that `boot` makes with these arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Combination {
    /// Its name, which its files have as well.
    pub name: String,
    /// The options of boot.
    pub options: Vec<OsString>,
    /// The command that runs in the guest.
    pub command: Vec<OsString>,
}

/// An option with its value.
pub fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut option = OsString::from(format!("--{name}="));
    option.push(value);
    option
}

/// Returns each kernel with each scheduler, as often as is asked for; repetitions are in turns, so that a machine that gets
/// slower treats all alike. `folder` is where the paths of the suite are seen from.
///
/// # Errors
///
/// Two runs have the same name.
pub fn combinations(suite: &SuiteFile, folder: &Path, repetitions: u32) -> Result<Vec<Combination>> {
    let schedulers: Vec<Option<&Scheduler>> =
        if suite.scheduler.is_empty() { vec![None] } else { suite.scheduler.iter().map(Some).collect() };
    let mut all = Vec::new();
    for repetition in 1..=repetitions {
        for kernel in &suite.kernel {
            all.extend(schedulers.iter().map(|scheduler| Combination {
                name: name(suite, kernel, *scheduler, repetition, repetitions),
                options: options(suite, folder, kernel, *scheduler),
                command: suite.command.iter().map(OsString::from).collect(),
            }));
        }
    }
    let mut names = BTreeSet::new();
    match all.iter().find(|of| !names.insert(&of.name)) {
        Some(twice) => Err(wrong_arguments(format!(
            "two runs are named {}; give kernels and schedulers names of their own",
            twice.name
        ))),
        None => Ok(all),
    }
}

fn name(
    suite: &SuiteFile,
    kernel: &Kernel,
    scheduler: Option<&Scheduler>,
    repetition: u32,
    repetitions: u32,
) -> String {
    let mut parts = Vec::new();
    let of_file = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if suite.kernel.len() > 1 || scheduler.is_none() {
        parts.push(kernel.name.clone().unwrap_or_else(|| of_file(&kernel.file)));
    }
    parts.extend(scheduler.map(|of| of.name.clone().unwrap_or_else(|| of_file(&of.program))));
    if repetitions > 1 {
        parts.push(repetition.to_string());
    }
    let plain = |char: char| if char.is_ascii_alphanumeric() || "._+-".contains(char) { char } else { '_' };
    // A name that begins with a dot would be hidden, or be the folder itself.
    parts.join("-").chars().map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

fn options(suite: &SuiteFile, folder: &Path, kernel: &Kernel, scheduler: Option<&Scheduler>) -> Vec<OsString> {
    let mut options = vec![option("kernel", folder.join(&kernel.file))];
    options.extend(kernel.modules.as_ref().map(|path| option("modules", folder.join(path))));
    options.extend(kernel.config.as_ref().map(|path| option("config", folder.join(path))));
    let numbers = [("samples", suite.samples), ("memory", suite.memory), ("cpus", suite.cpus)];
    options.extend(numbers.into_iter().filter_map(|(name, number)| Some(option(name, number?.to_string()))));
    let times = [("interval", &suite.interval), ("timeout", &suite.timeout)];
    options.extend(times.into_iter().filter_map(|(name, time)| Some(option(name, time.as_ref()?.get_ref()))));
    options.extend(suite.expect.iter().map(|expectation| option("expect", expectation.get_ref())));
    let Some(scheduler) = scheduler else { return options };
    options.push(option("scheduler", program(folder, &scheduler.program)));
    options.extend(scheduler.args.iter().map(|argument| option("scheduler-arg", argument)));
    options.extend(scheduler.expect.iter().map(|expectation| option("expect", expectation.get_ref())));
    options.extend(scheduler.no_stats.then(|| "--no-stats".into()));
    options.extend(scheduler.require_stats.then(|| "--require-stats".into()));
    options
}

/// A program's path; a bare name is looked up in PATH.
fn program(folder: &Path, program: &Path) -> OsString {
    let is_bare = program.components().count() == 1 && !program.starts_with(".");
    if is_bare { program.into() } else { folder.join(program).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(text: &str) -> SuiteFile {
        toml::from_str(text).unwrap()
    }

    const TWO: &str = "samples = 3\nexpect = ['a <= 1']\ncommand = ['true', 'x']\n[[kernel]]\nfile = 'k/7.2'\n[[kernel]]\nname = 'new one'\nfile = '/k'\n\
        modules = 'm'\n[[scheduler]]\nprogram = './scx_a'\nexpect = ['b <= 1']\nargs = ['-x']\n[[scheduler]]\nprogram = 'scx_b'\nno-stats = true\n";

    #[test]
    fn each_kernel_runs_with_each_scheduler_in_turns() {
        let all = combinations(&suite(TWO), Path::new("/s"), 2).unwrap();
        let names: Vec<_> = all.iter().map(|of| of.name.as_str()).collect();
        let expected = ["7.2-scx_a", "7.2-scx_b", "new_one-scx_a", "new_one-scx_b"];
        assert_eq!(
            names,
            [expected.map(|name| format!("{name}-1")), expected.map(|name| format!("{name}-2"))].concat()
        );
        let expected = [
            "--kernel=/k",
            "--modules=/s/m",
            "--samples=3",
            "--expect=a <= 1",
            "--scheduler=/s/./scx_a",
            "--scheduler-arg=-x",
            "--expect=b <= 1",
        ];
        assert_eq!(all[2].options, expected.map(OsString::from));
        assert_eq!(all[1].options.last(), Some(&OsString::from("--no-stats")));
        assert!(all[1].options.contains(&OsString::from("--scheduler=scx_b")));
        assert_eq!(all[0].command, ["true", "x"]);
    }

    #[test]
    fn two_runs_with_one_name_are_refused() {
        let twice = suite("[[kernel]]\nfile = 'k'\n[[scheduler]]\nprogram = 'a/x'\n[[scheduler]]\nprogram = 'b/x'\n");
        let error = combinations(&twice, Path::new("."), 1).unwrap_err();
        assert!(error.to_string().contains("two runs are named x; give"), "{error}");
        let alone = suite("[[kernel]]\nfile = 'a/../k'\n");
        assert_eq!(combinations(&alone, Path::new("."), 1).unwrap()[0].name, "k");
    }
}
