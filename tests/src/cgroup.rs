//! Measures the memory that this process and the kernel hold for it.

use std::fs;
use std::path::{Path, PathBuf};

/// A memory cgroup with this process as its only member. The kernel charges it with the process's pages and with kernel
/// memory, such as the buffers of Unix sockets.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    usage: &'static str,
}

impl Group {
    /// Moves this process into a new cgroup, of version 1 or 2. Returns `None` where that is not permitted.
    #[must_use]
    pub fn enter() -> Option<Self> {
        let hierarchies = [("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")];
        let is_mounted = |hierarchy: &str| Path::new(hierarchy).join("cgroup.procs").exists();
        hierarchies.into_iter().filter(|(hierarchy, _)| is_mounted(hierarchy)).find_map(|(hierarchy, usage)| {
            let folder = Path::new(hierarchy).join(format!("scx-vsock-memory-{}", std::process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Self { folder, usage };
            let entered = group.folder.join(usage).exists()
                && fs::write(group.folder.join("cgroup.procs"), std::process::id().to_string()).is_ok();
            entered.then_some(group)
        })
    }

    /// Returns the charged memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        fs::read_to_string(self.folder.join(self.usage)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only a cgroup without processes can be removed.
        let parent = self.folder.parent().unwrap().join("cgroup.procs");
        let _left = fs::write(parent, std::process::id().to_string());
        let _gone = fs::remove_dir(&self.folder);
    }
}

/// Returns the process's resident anonymous memory in bytes, for use where no cgroup can be made.
#[must_use]
pub fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
