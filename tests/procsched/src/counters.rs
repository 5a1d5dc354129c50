//! The kernel's counters, read from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde::Serialize;

/// The counters of `/proc/stat` and `/proc/schedstat` at one moment, or the difference of two moments.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// The time of all processors together.
    pub cpu: CpuTime,
    /// The time of each processor, by its number.
    pub cpus: BTreeMap<String, CpuTime>,
    /// Context switches.
    pub ctxt: u64,
    /// Created processes and threads.
    pub processes: u64,
    /// Each processor's run queue, by its number; empty where the kernel has no `/proc/schedstat`.
    pub runqueues: BTreeMap<String, Runqueue>,
}

/// Ticks that a processor spent (`USER_HZ`, as in `/proc/stat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CpuTime {
    pub user: u64,
    pub nice: u64,
    pub system: u64,
    pub idle: u64,
    pub iowait: u64,
    pub irq: u64,
    pub softirq: u64,
    pub steal: u64,
}

/// A processor's line of `/proc/schedstat`: the three fields that every version of it ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Runqueue {
    /// Nanoseconds that tasks ran.
    pub run_ns: u64,
    /// Nanoseconds that tasks waited to run.
    pub wait_ns: u64,
    /// Times that a task was given the processor.
    pub timeslices: u64,
}

impl Counters {
    /// Reads the present values.
    pub fn read() -> io::Result<Self> {
        let mut counters = Self::parse_stat(&fs::read_to_string("/proc/stat")?);
        match fs::read_to_string("/proc/schedstat") {
            Ok(text) => counters.runqueues = parse_schedstat(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(counters)
    }

    fn parse_stat(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(name) = words.next() else { continue };
            let mut numbers = words.map_while(|word| word.parse().ok());
            match name {
                "cpu" => counters.cpu = CpuTime::of(numbers),
                "ctxt" => counters.ctxt = numbers.next().unwrap_or(0),
                "processes" => counters.processes = numbers.next().unwrap_or(0),
                _ => {
                    if let Some(cpu) = name.strip_prefix("cpu") {
                        counters.cpus.insert(cpu.to_owned(), CpuTime::of(numbers));
                    }
                }
            }
        }
        counters
    }

    /// Returns what was added after `before`. A counter that went back (idle and iowait can) counts as no change.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.since(before.cpu),
            cpus: each_since(&self.cpus, &before.cpus, CpuTime::since),
            ctxt: self.ctxt.saturating_sub(before.ctxt),
            processes: self.processes.saturating_sub(before.processes),
            runqueues: each_since(&self.runqueues, &before.runqueues, Runqueue::since),
        }
    }
}

fn each_since<T: Copy + Default>(
    now: &BTreeMap<String, T>,
    before: &BTreeMap<String, T>,
    since: impl Fn(T, T) -> T,
) -> BTreeMap<String, T> {
    now.iter().map(|(cpu, &now)| (cpu.clone(), since(now, before.get(cpu).copied().unwrap_or_default()))).collect()
}

impl CpuTime {
    fn of(mut numbers: impl Iterator<Item = u64>) -> Self {
        let mut next = || numbers.next().unwrap_or(0);
        Self {
            user: next(),
            nice: next(),
            system: next(),
            idle: next(),
            iowait: next(),
            irq: next(),
            softirq: next(),
            steal: next(),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            nice: self.nice.saturating_sub(before.nice),
            system: self.system.saturating_sub(before.system),
            idle: self.idle.saturating_sub(before.idle),
            iowait: self.iowait.saturating_sub(before.iowait),
            irq: self.irq.saturating_sub(before.irq),
            softirq: self.softirq.saturating_sub(before.softirq),
            steal: self.steal.saturating_sub(before.steal),
        }
    }
}

fn parse_schedstat(text: &str) -> BTreeMap<String, Runqueue> {
    let mut runqueues = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(cpu) = words.next().and_then(|name| name.strip_prefix("cpu")) else { continue };
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        if let [.., run_ns, wait_ns, timeslices] = numbers[..] {
            runqueues.insert(cpu.to_owned(), Runqueue { run_ns, wait_ns, timeslices });
        }
    }
    runqueues
}

impl Runqueue {
    fn since(self, before: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(before.run_ns),
            wait_ns: self.wait_ns.saturating_sub(before.wait_ns),
            timeslices: self.timeslices.saturating_sub(before.timeslices),
        }
    }
}

/// The contents of `/proc/loadavg`.
#[derive(Debug, PartialEq, Serialize)]
pub struct Load {
    pub one: f64,
    pub five: f64,
    pub fifteen: f64,
    /// Threads that run or wait to run.
    pub runnable: u64,
    /// All threads.
    pub threads: u64,
}

impl Load {
    /// Reads the present values.
    pub fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/loadavg")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown format of /proc/loadavg"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let mut average = || words.next()?.parse().ok();
        let (one, five, fifteen) = (average()?, average()?, average()?);
        let (runnable, threads) = words.next()?.split_once('/')?;
        Some(Self { one, five, fifteen, runnable: runnable.parse().ok()?, threads: threads.parse().ok()? })
    }
}
