//! The options of a guest's machine, whatever runs it.

use super::topology::Topology;

/// The options of a guest's machine.
#[derive(Clone, Debug)]
pub(super) struct MachineOptions {
    pub(super) memory_mib: u32,
    /// By default as many as the topology has, or two.
    pub(super) cpus: Option<u32>,
    pub(super) topology: Option<Topology>,
    /// Arguments of the kernel in addition to those that every guest has.
    pub(super) kernel_arguments: Vec<String>,
}

/// How many processors a guest has by default.
const CPUS: u32 = 2;

impl MachineOptions {
    /// Returns the number of processors.
    pub(super) fn cpus(&self) -> u32 {
        self.cpus.or(self.topology.map(Topology::cpus)).unwrap_or(CPUS)
    }

    /// Returns the kernel's command line, for a machine whose console has this name in the guest and whose every kernel
    /// has these arguments.
    pub(super) fn kernel_command_line(&self, console: &str, platform_arguments: &[&str]) -> String {
        let console = format!("console={console}");
        let usual = [console.as_str(), "quiet", "panic=-1", "rdinit=/init"].into_iter();
        usual
            .chain(platform_arguments.iter().copied())
            .chain(self.kernel_arguments.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
