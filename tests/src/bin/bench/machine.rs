//! The machine that measures.

use std::fs;
use std::process::Command;

/// Returns its processor, kernel, QEMU and compiler, a line each.
pub fn lines() -> Vec<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |cpu| cpu.1);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        format!("{count} processors: {model}"),
        format!("Linux {}", kernel.trim()),
        first_line("qemu-system-x86_64", &["--version"]),
        first_line("rustc", &["--version"]),
        first_line("date", &["--utc", "+measured on %Y-%m-%d"]),
    ]
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().map_or_else(|| format!("{program}: unknown"), str::to_owned)
}
