//! What a guest says of its NUMA nodes.

/// A shell command that prints each node's processors, and `Node N KIB` for its memory.
pub const SHOW: &str =
    "cd /sys/devices/system/node; cat node*/cpulist; sed -n 's/ kB//; s/ *MemTotal: */ /p' node*/meminfo";

/// Checks that each node has more than so many and at most so many MiB: the kernel takes some for itself.
///
/// # Panics
///
/// If one has not.
pub fn assert_nodes_have_mib(text: &str, nodes: [(u32, u32); 2]) {
    for (node, (more_than, at_most)) in nodes.into_iter().enumerate() {
        let kib = text.lines().find_map(|line| line.strip_prefix(&format!("Node {node} "))?.trim().parse::<u32>().ok());
        let has = kib.is_some_and(|kib| kib > more_than << 10 && kib <= at_most << 10);
        assert!(has, "node {node} has {kib:?} KiB: {text}");
    }
}
