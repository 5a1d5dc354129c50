//! The options of a guest's machine, whatever runs it.

use super::topology::{Topology, TopologyError};

/// The options of a guest's machine.
#[derive(Clone, Debug)]
pub(super) struct MachineOptions {
    /// In MiB. By default as much as the topology's nodes have, or 1,024.
    pub(super) memory_mib: Option<u32>,
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
        self.cpus.or(self.topology.as_ref().map(Topology::cpus)).unwrap_or(CPUS)
    }

    /// Returns the memory in MiB.
    pub(super) fn memory_mib(&self) -> u32 {
        Topology::guest_memory_mib(self.memory_mib, self.topology.as_ref())
    }

    /// Returns each NUMA node's memory in MiB.
    ///
    /// # Errors
    ///
    /// Those of the topology, if the machine has other processors or another memory.
    pub(super) fn nodes(&self) -> Result<Vec<u32>, TopologyError> {
        let topology = self.topology.clone().unwrap_or_else(|| Topology::plain(self.cpus()));
        topology.check_cpus(self.cpus())?;
        topology.divide_memory(self.memory_mib())
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
