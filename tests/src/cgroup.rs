//! What this process makes its kernel hold.

use std::fs;
use std::path::{Path, PathBuf};

/// A control group of this process alone, whose memory the kernel counts: the process's pages, and what the kernel
/// allocates for it, the buffers of Unix sockets among that.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    usage: &'static str,
}

impl Group {
    /// Moves this process into a group of its own, if it may.
    #[must_use]
    pub fn enter() -> Option<Self> {
        let hierarchies = [("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")];
        let there = |hierarchy: &str| Path::new(hierarchy).join("cgroup.procs").exists();
        hierarchies.into_iter().filter(|(hierarchy, _)| there(hierarchy)).find_map(|(hierarchy, usage)| {
            let folder = Path::new(hierarchy).join(format!("scx-vsock-memory-{}", std::process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Self { folder, usage };
            let entered = group.folder.join(usage).exists()
                && fs::write(group.folder.join("cgroup.procs"), std::process::id().to_string()).is_ok();
            entered.then_some(group)
        })
    }

    /// What the kernel counts now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        fs::read_to_string(self.folder.join(self.usage)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group without processes can go.
        let parent = self.folder.parent().unwrap().join("cgroup.procs");
        let _left = fs::write(parent, std::process::id().to_string());
        let _gone = fs::remove_dir(&self.folder);
    }
}

/// The process's own resident memory, for who may not make a group.
#[must_use]
pub fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
