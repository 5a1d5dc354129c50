//! One run of many: a kernel, a topology, a scheduler, and which repetition it is.

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

/// What a run is of, beside its repetition.
#[derive(Clone, Copy)]
struct Parts<'s> {
    kernel: &'s Kernel,
    topology: Option<&'s str>,
    scheduler: Option<&'s Scheduler>,
}

/// Returns each kernel with each topology and each scheduler, as often as is asked for; repetitions are in turns, so that a
/// machine that gets slower treats all alike. `folder` is where the paths of the suite are seen from.
///
/// # Errors
///
/// Two runs have the same name.
pub fn combinations(suite: &SuiteFile, folder: &Path, repetitions: u32) -> Result<Vec<Combination>> {
    let parts = all_parts(suite);
    let run = |repetition: Option<u32>, parts: &Parts<'_>| Combination {
        name: name(suite, parts, repetition),
        options: options(suite, folder, parts),
        command: suite.command.iter().map(OsString::from).collect(),
    };
    let numbers = (1..=repetitions).map(|number| Some(number).filter(|_| repetitions > 1));
    let all: Vec<_> = numbers.flat_map(|number| parts.iter().map(move |parts| run(number, parts))).collect();
    let mut names = BTreeSet::new();
    match all.iter().find(|of| !names.insert(&of.name)) {
        Some(twice) => Err(wrong_arguments(format!(
            "two runs are named {}; give kernels and schedulers names of their own",
            twice.name
        ))),
        None => Ok(all),
    }
}

fn all_parts(suite: &SuiteFile) -> Vec<Parts<'_>> {
    let topologies: Vec<_> = suite.topology.iter().map(|text| text.get_ref().as_str()).collect();
    let schedulers: Vec<_> = suite.scheduler.iter().collect();
    let mut all = Vec::new();
    for kernel in &suite.kernel {
        for topology in each_or_none(&topologies) {
            let run = |scheduler| Parts { kernel, topology, scheduler };
            all.extend(each_or_none(&schedulers).into_iter().map(run));
        }
    }
    all
}

/// Each of these, or once none where there are none.
fn each_or_none<T: Copy>(all: &[T]) -> Vec<Option<T>> {
    if all.is_empty() { vec![None] } else { all.iter().copied().map(Some).collect() }
}

fn name(suite: &SuiteFile, parts: &Parts<'_>, repetition: Option<u32>) -> String {
    let Parts { kernel, topology, scheduler } = parts;
    let mut words = Vec::new();
    let of_file = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if suite.kernel.len() > 1 || scheduler.is_none() {
        words.push(kernel.name.clone().unwrap_or_else(|| of_file(&kernel.file)));
    }
    words.extend(topology.filter(|_| suite.topology.len() > 1).map(topology_name));
    words.extend(scheduler.map(|of| of.name.clone().unwrap_or_else(|| of_file(&of.program))));
    words.extend(repetition.map(|number| number.to_string()));
    let plain = |char: char| if char.is_ascii_alphanumeric() || "._+-".contains(char) { char } else { '_' };
    // A name that begins with a dot would be hidden, or be the folder itself.
    words.join("-").chars().map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

/// A topology as a part of a name, such as `sockets2+cores2`: what there is one of is omitted.
fn topology_name(topology: &str) -> String {
    let several: Vec<_> = topology.split(',').filter(|part| !part.ends_with("=1")).collect();
    if several.is_empty() { "cores1".to_owned() } else { several.join("+").replace('=', "") }
}

fn options(suite: &SuiteFile, folder: &Path, parts: &Parts<'_>) -> Vec<OsString> {
    let Parts { kernel, topology, scheduler } = parts;
    let mut options = vec![option("kernel", folder.join(&kernel.file))];
    options.extend(kernel.modules.as_ref().map(|path| option("modules", folder.join(path))));
    options.extend(kernel.config.as_ref().map(|path| option("config", folder.join(path))));
    options.extend(topology.map(|topology| option("topology", topology)));
    let numbers = [("samples", suite.samples), ("memory", suite.memory), ("cpus", suite.cpus)];
    options.extend(numbers.into_iter().filter_map(|(name, number)| Some(option(name, number?.to_string()))));
    let times = [("interval", suite.interval), ("timeout", suite.timeout)];
    options.extend(times.into_iter().filter_map(|(name, time)| Some(option(name, time?.0.as_secs_f64().to_string()))));
    options.extend(suite.expect.iter().map(|expectation| option("expect", expectation.get_ref())));
    options.extend(scheduler.map(|scheduler| of_scheduler(scheduler, folder)).into_iter().flatten());
    options
}

fn of_scheduler(scheduler: &Scheduler, folder: &Path) -> Vec<OsString> {
    let mut options = vec![option("scheduler", program(folder, &scheduler.program))];
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
    fn each_topology_is_a_part_of_the_names_where_there_are_several() {
        let kernel = "[[kernel]]\nfile = 'k'\n";
        let names = |topologies: &str| {
            let suite = suite(&format!("topology = {topologies}\n{kernel}"));
            combinations(&suite, Path::new(""), 1).unwrap()
        };
        let all = names("['cores=2', 'sockets=2,llcs=1,cores=2', 'cores=1']");
        let expected = ["k-cores2", "k-sockets2+cores2", "k-cores1"];
        assert_eq!(all.iter().map(|of| of.name.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(all[1].options, ["--kernel=k", "--topology=sockets=2,llcs=1,cores=2"].map(OsString::from));
        let all = names("['cores=4']\ninterval = '250ms'\ntimeout = 90");
        assert!(all[0].options.ends_with(&["--interval=0.25".into(), "--timeout=90".into()]), "{:?}", all[0]);
        assert!(all.len() == 1 && all[0].name == "k" && all[0].options[1] == "--topology=cores=4");
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
