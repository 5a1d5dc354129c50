//! How a guest's processors and its memory are arranged.

use std::fmt;
use std::iter;
use std::str::FromStr;

/// The keys of the text form's numbers, in the order in which they are written.
const KEYS: [&str; 5] = ["sockets", "llcs", "cores", "threads", "nodes"];

/// The key of the nodes' memory.
const MEMORY: &str = "memory";

/// A guest's memory in MiB where nothing says how much it is.
const GUEST_MIB: u32 = 1024;

/// The least memory of a node, in MiB: Linux ignores one that has less.
const MIN_NODE_MIB: u32 = 4;

/// The most processors, whose APIC ids must fit into a byte, of which the last means all.
const MAX_APIC_IDS: u32 = 255;

/// How a guest's processors are arranged: sockets, in each of them domains that share a last-level cache (LLC), in each of
/// these cores, in each of these threads. NUMA nodes divide the LLC domains into equal parts, and memory too, unless each
/// node's is given in MiB.
///
/// ```
/// use scx_vsock::guest::Topology;
///
/// let topology: Topology = "sockets=2,llcs=1,cores=2,threads=2,nodes=2".parse()?;
/// assert_eq!(topology.cpus(), 8);
/// let error = topology.check_cpus(6).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "the topology sockets=2,llcs=1,cores=2,threads=2,nodes=2 does not multiply up: it has 8 processors, and 6 were asked \
///      for; change it, or ask for 8"
/// );
///
/// let uneven: Topology = "sockets=2,cores=2,nodes=2,memory=256+768".parse()?;
/// assert_eq!(uneven.node_memory_mib(), [256, 768]);
/// # Ok::<(), scx_vsock::guest::TopologyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    sockets: u32,
    llcs: u32,
    cores: u32,
    threads: u32,
    nodes: u32,
    /// Each node's, in MiB. Empty where they are equal.
    memory: Vec<u32>,
}

/// Why a text is no topology, or a guest cannot have it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The text is no list of keys and numbers.
    #[error(
        "{part:?} is no part of a topology: write it as sockets=2,llcs=1,cores=2,threads=2,nodes=2,memory=256+768, all \
         optional"
    )]
    Syntax {
        /// The part that is not understood.
        part: String,
    },
    /// The number of processors is another one than that of the topology.
    #[error(
        "the topology {topology} does not multiply up: it has {} processors, and {cpus} were asked for; change it, or ask \
         for {}",
        topology.cpus(), topology.cpus()
    )]
    DoesNotMultiplyUp {
        /// The topology.
        topology: Topology,
        /// The number of processors that was asked for.
        cpus: u32,
    },
    /// The nodes cannot have equally many LLC domains.
    #[error("the {llcs} LLC domains of the topology {topology} cannot be divided among its nodes: change one of them")]
    Nodes {
        /// The topology.
        topology: Topology,
        /// How many LLC domains it has in all.
        llcs: u32,
    },
    /// Not as many nodes have memory as there are.
    #[error("the topology {topology} gives memory to {} of its nodes: give it to each of them", topology.memory.len())]
    NodesOfMemory {
        /// The topology.
        topology: Topology,
    },
    /// The nodes' memory is not that of the guest.
    #[error(
        "the memory of the topology {topology} does not add up: its nodes have {nodes_mib} MiB, and the guest has \
         {memory_mib}; change it, or give the guest {nodes_mib}"
    )]
    MemoryDoesNotAddUp {
        /// The topology.
        topology: Topology,
        /// What the nodes have together.
        nodes_mib: u64,
        /// What the guest has.
        memory_mib: u32,
    },
    /// A node has too little memory.
    #[error("a node of the topology {topology} has {mib} MiB of memory: Linux ignores it unless it has {MIN_NODE_MIB}")]
    SmallNode {
        /// The topology.
        topology: Topology,
        /// The node's memory.
        mib: u32,
    },
    /// There are too many processors.
    #[error("the topology {topology} is too large: its APIC ids take {ids} numbers, of which there are {MAX_APIC_IDS}")]
    TooLarge {
        /// The topology.
        topology: Topology,
        /// How many APIC ids it takes, with those that are not used.
        ids: u64,
    },
    /// The VMM cannot show the topology to its guest.
    #[error("{vmm} does not show {what}: take a microVM (--vmm microvm, GuestBuilder::vmm), or another topology")]
    NotShown {
        /// The VMM.
        vmm: &'static str,
        /// What it does not show.
        what: &'static str,
    },
}

impl Topology {
    /// Returns the topology of so many processors where none was asked for: one socket of so many cores.
    #[must_use]
    pub fn plain(cpus: u32) -> Self {
        Self { sockets: 1, llcs: 1, cores: cpus.max(1), threads: 1, nodes: 1, memory: Vec::new() }
    }

    /// Returns the number of sockets.
    #[must_use]
    pub fn sockets(&self) -> u32 {
        self.sockets
    }

    /// Returns the number of LLC domains of each socket.
    #[must_use]
    pub fn llcs(&self) -> u32 {
        self.llcs
    }

    /// Returns the number of cores of each LLC domain.
    #[must_use]
    pub fn cores(&self) -> u32 {
        self.cores
    }

    /// Returns the number of threads of each core.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Returns the number of NUMA nodes.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Returns the memory of each NUMA node in MiB. It is empty where the nodes have equal parts of what there is.
    #[must_use]
    pub fn node_memory_mib(&self) -> &[u32] {
        &self.memory
    }

    /// Returns the memory of all NUMA nodes in MiB, where each node's is given.
    #[must_use]
    pub fn memory_mib(&self) -> Option<u32> {
        u32::try_from(self.sum_of_memory()).ok().filter(|&mib| mib > 0)
    }

    /// Returns the memory in MiB of a guest that asks for so much, or has this topology.
    pub(super) fn guest_memory_mib(asked: Option<u32>, topology: Option<&Self>) -> u32 {
        asked.or(topology.and_then(Self::memory_mib)).unwrap_or(GUEST_MIB)
    }

    fn sum_of_memory(&self) -> u64 {
        self.memory.iter().copied().map(u64::from).sum()
    }

    /// Divides this much memory among the NUMA nodes: each node's, in MiB. Equal parts are even, and the last node has the
    /// rest.
    ///
    /// # Errors
    ///
    /// [`TopologyError::MemoryDoesNotAddUp`], [`TopologyError::SmallNode`].
    pub(super) fn divide_memory(&self, memory_mib: u32) -> Result<Vec<u32>, TopologyError> {
        let nodes_mib = self.sum_of_memory();
        let parts = if self.memory.is_empty() {
            self.equal_parts(memory_mib)
        } else if nodes_mib == u64::from(memory_mib) {
            self.memory.clone()
        } else {
            return Err(TopologyError::MemoryDoesNotAddUp { topology: self.clone(), nodes_mib, memory_mib });
        };
        match parts.iter().find(|&&mib| mib < MIN_NODE_MIB && parts.len() > 1) {
            Some(&mib) => Err(TopologyError::SmallNode { topology: self.clone(), mib }),
            None => Ok(parts),
        }
    }

    fn equal_parts(&self, memory_mib: u32) -> Vec<u32> {
        let (others, share) = (self.nodes - 1, memory_mib / self.nodes / 2 * 2);
        (0..others).map(|_| share).chain([memory_mib - others * share]).collect()
    }

    /// Returns the number of processors, that is threads of all cores.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        [self.llcs, self.cores, self.threads].into_iter().fold(self.sockets, u32::saturating_mul)
    }

    /// Checks that there are so many processors.
    ///
    /// # Errors
    ///
    /// [`TopologyError::DoesNotMultiplyUp`].
    pub fn check_cpus(&self, cpus: u32) -> Result<(), TopologyError> {
        if cpus == self.cpus() {
            return Ok(());
        }
        Err(TopologyError::DoesNotMultiplyUp { topology: self.clone(), cpus })
    }

    fn checked(self) -> Result<Self, TopologyError> {
        let llcs = self.sockets.saturating_mul(self.llcs);
        if !llcs.is_multiple_of(self.nodes) {
            return Err(TopologyError::Nodes { topology: self, llcs });
        }
        if !self.memory.is_empty() && self.memory.len() as u64 != u64::from(self.nodes) {
            return Err(TopologyError::NodesOfMemory { topology: self });
        }
        let bits_of_socket: u32 = [self.threads, self.cores, self.llcs].map(bits_for).into_iter().sum();
        let ids = u64::from(self.sockets) << bits_of_socket.min(32);
        if ids > MAX_APIC_IDS.into() {
            return Err(TopologyError::TooLarge { topology: self, ids });
        }
        Ok(self)
    }
}

/// How many bits numbers below `count` take.
pub(super) fn bits_for(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sockets, llcs, cores, threads, nodes, memory } = self;
        write!(f, "sockets={sockets},llcs={llcs},cores={cores},threads={threads},nodes={nodes}")?;
        for (mib, before) in memory.iter().zip([",memory="].into_iter().chain(iter::repeat("+"))) {
            write!(f, "{before}{mib}")?;
        }
        Ok(())
    }
}

impl FromStr for Topology {
    type Err = TopologyError;

    /// Reads a list such as `sockets=2,llcs=1,cores=2,threads=2,nodes=2,memory=256+768`. Numbers that are not there are 1,
    /// and memory that is not there is divided into equal parts.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut numbers, mut memory) = ([None; KEYS.len()], Vec::new());
        for part in text.split(',') {
            let syntax = || TopologyError::Syntax { part: part.to_owned() };
            let (key, number) = part.split_once('=').ok_or_else(syntax)?;
            if key == MEMORY && memory.is_empty() {
                memory = number.split('+').map(positive).collect::<Option<_>>().ok_or_else(syntax)?;
                continue;
            }
            let at = KEYS.iter().position(|&known| known == key).ok_or_else(syntax)?;
            let slot = numbers.get_mut(at).ok_or_else(syntax)?;
            if slot.replace(positive(number).ok_or_else(syntax)?).is_some() {
                return Err(syntax());
            }
        }
        let [sockets, llcs, cores, threads, nodes] = numbers.map(|number| number.unwrap_or(1));
        Self { sockets, llcs, cores, threads, nodes, memory }.checked()
    }
}

fn positive(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number| number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(text: &str) -> Topology {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        text.parse::<Topology>().unwrap_err().to_string()
    }

    #[test]
    fn a_topology_reads_back() {
        let with_memory = "sockets=1,llcs=2,cores=3,threads=1,nodes=2,memory=256+768";
        for text in ["sockets=2,llcs=1,cores=2,threads=2,nodes=1", with_memory] {
            assert_eq!(topology(text).to_string(), text);
        }
        assert_eq!(topology("threads=2"), topology("sockets=1,threads=2,cores=1"));
        assert_eq!(topology("cores=4"), Topology::plain(4));
    }

    #[test]
    fn memory_is_divided_among_nodes() {
        let divided = |text: &str, mib| topology(text).divide_memory(mib).map_err(|error| error.to_string());
        assert_eq!(divided("cores=4", 1000), Ok(vec![1000]));
        assert_eq!(divided("sockets=3,nodes=3", 1000), Ok(vec![332, 332, 336]));
        assert_eq!(divided("sockets=2,nodes=2,memory=256+768", 1024), Ok(vec![256, 768]));
        assert_eq!(
            divided("sockets=2,nodes=2,memory=256+768", 1000).unwrap_err(),
            "the memory of the topology sockets=2,llcs=1,cores=1,threads=1,nodes=2,memory=256+768 does not add up: its nodes \
             have 1024 MiB, and the guest has 1000; change it, or give the guest 1024"
        );
        assert!(divided("sockets=32,nodes=32", 64).unwrap_err().contains(" has 2 MiB of memory: Linux ignores it"));
        assert!(divided("sockets=2,nodes=2,memory=3+997", 1000).unwrap_err().contains(" has 3 MiB of memory"));
        assert!(refused("sockets=2,nodes=2,memory=256").contains("gives memory to 1 of its nodes"));
        assert_eq!(topology("memory=256").memory_mib(), Some(256));
    }

    #[test]
    fn what_is_no_topology_is_named() {
        for (text, part) in [
            ("", ""),
            ("cores", "cores"),
            ("cores=2,dies=1", "dies=1"),
            ("cores=0", "cores=0"),
            ("cores=2,cores=2", "cores=2"),
            ("cores=4294967296", "cores=4294967296"),
            ("nodes=2,memory=256+", "memory=256+"),
            ("nodes=2,memory=256M+256M", "memory=256M+256M"),
            ("memory=256,memory=256", "memory=256"),
            ("cores=2\u{1b}[2J", "cores=2\\u{1b}[2J"),
        ] {
            assert!(refused(text).starts_with(&format!("\"{part}\" is no part of a topology: write it as ")), "{text}");
        }
        assert!(refused("sockets=3,nodes=2").starts_with("the 3 LLC domains of the topology sockets=3,"));
        assert!(refused("sockets=4294967295,cores=4294967295,threads=4294967295").contains("is too large"));
        // Seven of eight ids of each socket are used.
        assert!(refused("sockets=32,cores=7").contains("take 256 numbers, of which there are 255"));
    }
}
