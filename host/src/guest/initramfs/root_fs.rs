//! The file system that a kernel makes of archives, as far as names, kinds and links go (Linux, `init/initramfs.c`).
//!
//! A kernel creates each entry at once, by its path as it is written: links and `..` lead where they lead at that moment,
//! and an entry whose folder is not there is dropped. What it finds at the path of an entry of another kind it removes
//! first, unless that is a folder with something in it.

use std::collections::BTreeMap;

use rustix::fs::FileType;

use super::entry::LinkKey;

/// The most links that a kernel follows for one path.
const MAX_LINKS: u32 = 40;

/// The most bytes of a name in a path.
const MAX_NAME_BYTES: usize = 255;

/// A stand-in for what an entry needs beside its path.
const ENTRY_BYTES: usize = 64;

/// The files, by their paths without a leading slash and without links in them.
#[derive(Debug)]
pub(super) struct RootFs {
    nodes: BTreeMap<Vec<u8>, Node>,
    /// The first path of each file of this archive that may have several.
    links: BTreeMap<LinkKey, Vec<u8>>,
    inodes: u64,
    bytes: usize,
}

/// What is at a path.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Folder,
    File(File),
    /// A symbolic link's target.
    Link(Vec<u8>),
    /// A device's kind and numbers, a pipe or a socket.
    Special(FileType, (u32, u32)),
}

/// A regular file.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    /// Two paths with one inode are one file.
    pub(super) inode: u64,
    executable: bool,
}

/// A file that a kernel has opened for an entry's content.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) place: Vec<u8>,
    pub(super) inode: u64,
    /// Whether it is another path of a file that was there, which keeps its content where the entry has none.
    pub(super) is_shared: bool,
}

impl Node {
    fn kind(&self) -> FileType {
        match self {
            Self::Folder => FileType::Directory,
            Self::File(_) => FileType::RegularFile,
            Self::Link(_) => FileType::Symlink,
            Self::Special(kind, _) => *kind,
        }
    }
}

impl RootFs {
    /// Returns what kernels contain themselves where they were built without an initramfs of their own.
    pub(super) fn new() -> Self {
        let nodes = [
            (&b""[..], Node::Folder),
            (b"dev", Node::Folder),
            (b"dev/console", Node::Special(FileType::CharacterDevice, (5, 1))),
            (b"root", Node::Folder),
        ];
        let nodes = nodes.map(|(path, node)| (path.to_vec(), node)).into();
        Self { nodes, links: BTreeMap::new(), inodes: 0, bytes: 0 }
    }

    /// Returns about how much memory it needs. It never becomes less.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ends an archive: entries of the next one are no further paths of its files.
    pub(super) fn end_archive(&mut self) {
        self.links.clear();
    }

    pub(super) fn add_folder(&mut self, path: &[u8]) {
        let Some(place) = self.place_of_entry(path, FileType::Directory) else { return };
        self.make_room(&place, Some(FileType::Directory));
        self.add(place, Node::Folder);
    }

    pub(super) fn add_link(&mut self, path: &[u8], target: Vec<u8>) {
        let Some(place) = self.place_of_entry(path, FileType::Symlink) else { return };
        self.make_room(&place, None);
        self.add(place, Node::Link(target));
    }

    pub(super) fn add_special(&mut self, path: &[u8], kind: FileType, number: (u32, u32), key: Option<LinkKey>) {
        let place = self.place_of_entry(path, kind);
        if let Some(place) = &place {
            self.make_room(place, Some(kind));
        }
        if let Some(first) = self.first_path(path, key) {
            self.link_to(&first, place);
        } else if let Some(place) = place {
            self.add(place, Node::Special(kind, number));
        }
    }

    /// Opens the file of an entry for its content. `None` if a kernel drops it.
    pub(super) fn open(&mut self, path: &[u8], mode: u32, key: Option<LinkKey>) -> Option<Opened> {
        let place = self.place_of_entry(path, FileType::RegularFile);
        if let Some(place) = &place {
            self.make_room(place, Some(FileType::RegularFile));
        }
        let first = self.first_path(path, key);
        if let Some(first) = &first {
            self.link_to(first, place.clone());
        } else if let Some(place) = &place {
            self.inodes += 1;
            self.add(place.clone(), Node::File(File { inode: self.inodes, executable: false }));
        }
        let place = place?;
        let Some(Node::File(file)) = self.nodes.get_mut(&place) else { return None };
        file.executable = mode & 0o111 != 0;
        Some(Opened { inode: file.inode, is_shared: first.is_some(), place })
    }

    /// Returns the path that this file's first entry had; remembers this one if it is the first.
    fn first_path(&mut self, path: &[u8], key: Option<LinkKey>) -> Option<Vec<u8>> {
        let key = key?;
        if let Some(first) = self.links.get(&key) {
            return Some(first.clone());
        }
        self.bytes += path.len() + ENTRY_BYTES;
        self.links.insert(key, path.to_vec());
        None
    }

    fn link_to(&mut self, first: &[u8], place: Option<Vec<u8>>) {
        let Some(place) = place else { return };
        self.make_room(&place, None);
        let node = self.place(first, false).and_then(|first| self.nodes.get(&first)).cloned();
        if let Some(node) = node.filter(|node| !matches!(node, Node::Folder)) {
            self.add(place, node);
        }
    }

    /// Adds a node, unless there is one.
    fn add(&mut self, place: Vec<u8>, node: Node) {
        let target = if let Node::Link(target) = &node { target.len() } else { 0 };
        self.bytes += place.len() + target + ENTRY_BYTES;
        self.nodes.entry(place).or_insert(node);
    }

    /// Removes what is there of another kind, or of any if `kind` is `None`. A folder that is not empty stays.
    fn make_room(&mut self, place: &[u8], kind: Option<FileType>) {
        let Some(node) = self.nodes.get(place) else { return };
        let may_stay = kind == Some(node.kind());
        if !(may_stay || matches!(node, Node::Folder) && self.is_occupied(place)) {
            self.nodes.remove(place);
        }
    }

    /// Whether a folder has something in it.
    fn is_occupied(&self, folder: &[u8]) -> bool {
        let first = [folder, b"/"].concat();
        let next = self.nodes.range(first.clone()..).next();
        folder.is_empty() || next.is_some_and(|(path, _)| path.starts_with(&first))
    }

    /// Returns where a kernel creates an entry of this kind, if it does.
    fn place_of_entry(&self, path: &[u8], kind: FileType) -> Option<Vec<u8>> {
        let last = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty())?;
        let names_folder = path.ends_with(b"/");
        if matches!(last, b"." | b"..") || names_folder && kind != FileType::Directory {
            return None;
        }
        let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        self.place(path.get(..end)?, names_folder)
    }

    /// Returns where a path leads: `None` if a folder on the way is missing, else where something is or could be.
    fn place(&self, path: &[u8], follows_last: bool) -> Option<Vec<u8>> {
        let (mut place, mut links) = (Vec::new(), 0);
        let mut names: Vec<Vec<u8>> = Vec::new();
        push_names(&mut names, path);
        while let Some(name) = names.pop() {
            let is_folder = matches!(self.nodes.get(&place), Some(Node::Folder));
            if !is_folder || name.len() > MAX_NAME_BYTES || links > MAX_LINKS {
                return None;
            }
            let next = step(&place, &name);
            match self.nodes.get(&next) {
                Some(Node::Link(target)) if follows_last || !names.is_empty() => {
                    links += 1;
                    if target.starts_with(b"/") {
                        place.clear();
                    }
                    push_names(&mut names, target);
                }
                _ => place = next,
            }
        }
        (links <= MAX_LINKS).then_some(place)
    }

    /// Returns what a path names, itself.
    pub(super) fn entry(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(&self.place(path, false)?)
    }

    /// Returns what a path leads to.
    pub(super) fn target(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(&self.place(path, true)?)
    }

    /// Returns the inode of the executable file that a path leads to.
    pub(super) fn program(&self, path: &[u8]) -> Option<u64> {
        match self.target(path)? {
            Node::File(file) if file.executable => Some(file.inode),
            _ => None,
        }
    }

    /// Whether a file has other paths.
    pub(super) fn is_shared(&self, inode: u64) -> bool {
        let paths = self.nodes.values().filter(|node| matches!(node, Node::File(file) if file.inode == inode));
        paths.take(2).count() > 1
    }

    /// Returns the names of all files.
    pub(super) fn file_names(&self) -> impl Iterator<Item = &[u8]> {
        let files = self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.rsplit(|byte| *byte == b'/').next().unwrap_or_default())
    }
}

/// Puts the names of a path before others, the next one last. A slash at the end is one before a dot.
fn push_names(names: &mut Vec<Vec<u8>>, path: &[u8]) {
    if path.ends_with(b"/") {
        names.push(b".".to_vec());
    }
    let own = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.extend(own.rev().map(<[u8]>::to_vec));
}

/// Returns the path of a name in a folder.
fn step(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match name {
        b"." => folder.to_vec(),
        b".." => folder.get(..folder.iter().rposition(|byte| *byte == b'/').unwrap_or(0)).unwrap_or_default().to_vec(),
        _ if folder.is_empty() => name.to_vec(),
        _ => [folder, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGULAR: u32 = 0o100_755;

    fn key(inode: u32, minor: u32) -> Option<LinkKey> {
        Some((inode, (0, minor), 0o100_000))
    }

    /// A file system with the folder `bin` and the program `bin/busybox`.
    fn root_fs() -> RootFs {
        let mut root = RootFs::new();
        root.add_folder(b"bin");
        root.open(b"bin/busybox", REGULAR, None).unwrap();
        root
    }

    #[test]
    fn a_path_leads_where_it_leads_at_that_moment() {
        let mut root = root_fs();
        assert_eq!(root.open(b"bin/../init", REGULAR, None).unwrap().place, b"init");
        assert_eq!(root.open(b"/./init", REGULAR, None).unwrap().place, b"init");
        assert_eq!(root.open(b"../../init", REGULAR, None).unwrap().place, b"init");
        assert!(root.open(b"sbin/../init", REGULAR, None).is_none(), "there is no sbin");
        root.add_folder(b"usr");
        root.add_folder(b"usr/sbin");
        root.add_link(b"sbin", b"/usr/sbin".to_vec());
        assert_eq!(root.open(b"sbin/../init", REGULAR, None).unwrap().place, b"usr/init");
    }

    #[test]
    fn entries_without_their_folder_are_dropped() {
        let mut root = root_fs();
        assert!(root.open(b"usr/bin/sh", REGULAR, None).is_none());
        root.add_folder(b"usr/bin");
        root.add_link(b"usr/bin/sh", b"/bin/busybox".to_vec());
        assert!(root.entry(b"usr/bin/sh").is_none() && root.entry(b"usr").is_none());
        assert!(root.open(b"bin/busybox/sh", REGULAR, None).is_none());
        for path in [&b""[..], b"/", b".", b"bin/.", b"bin/..", b"new/"] {
            assert!(root.open(path, REGULAR, None).is_none(), "{path:?}");
        }
        assert!(root.open(&[b'n'; 256], REGULAR, None).is_none());
        assert!(root.open(&[b'n'; 255], REGULAR, None).is_some());
    }

    #[test]
    fn entries_replace_those_of_other_kinds() {
        let mut root = root_fs();
        root.add_link(b"init", b"bin/busybox".to_vec());
        let busybox = root.program(b"bin/busybox");
        assert_eq!(root.program(b"init"), busybox);
        root.open(b"init", REGULAR, None).unwrap();
        assert_ne!(root.program(b"init"), busybox, "the link was replaced, not followed");
        root.add_folder(b"init");
        assert!(matches!(root.entry(b"init"), Some(Node::Folder)));
        assert!(root.open(b"init", REGULAR, None).is_some(), "an empty folder goes");
        assert!(root.open(b"bin", REGULAR, None).is_none(), "an occupied one stays");
        root.add_link(b"bin", b"/".to_vec());
        assert!(matches!(root.entry(b"bin"), Some(Node::Folder)));
    }

    #[test]
    fn a_device_stays_where_another_of_its_kind_is_added() {
        let mut root = RootFs::new();
        root.add_special(b"dev/null", FileType::CharacterDevice, (1, 5), None);
        root.add_special(b"dev/null", FileType::CharacterDevice, (1, 3), None);
        assert!(matches!(root.entry(b"dev/null"), Some(Node::Special(_, (1, 5)))));
        root.add_link(b"dev/null", b"".to_vec());
        root.add_special(b"dev/null", FileType::CharacterDevice, (1, 3), None);
        assert!(matches!(root.entry(b"dev/null"), Some(Node::Special(_, (1, 3)))));
    }

    #[test]
    fn only_entries_with_one_inode_and_device_are_one_file() {
        let mut root = root_fs();
        let one = root.open(b"one", REGULAR, key(1, 8)).unwrap();
        assert!(!root.is_shared(one.inode), "a link count alone says nothing");
        let device = root.open(b"device", REGULAR, key(1, 9)).unwrap();
        let inode = root.open(b"inode", REGULAR, key(2, 8)).unwrap();
        assert!(!one.is_shared && !device.is_shared && !inode.is_shared);
        let two = root.open(b"bin/two", REGULAR, key(1, 8)).unwrap();
        assert!(two.is_shared && two.inode == one.inode && root.is_shared(one.inode));
        root.add_folder(b"one");
        assert!(!root.is_shared(two.inode), "the other path is gone");
        root.end_archive();
        assert!(!root.open(b"three", REGULAR, key(1, 8)).unwrap().is_shared, "another archive");
    }

    #[test]
    fn links_that_lead_nowhere_are_no_programs() {
        let mut root = root_fs();
        for (path, target) in [
            ("self", "self"),
            ("a", "b"),
            ("b", "a"),
            ("gone", "no/such"),
            ("empty", ""),
            ("up", ".."),
            ("slash", "bin/busybox/"),
            ("dot", "bin/busybox/."),
        ] {
            root.add_link(path.as_bytes(), target.into());
        }
        for path in ["self", "a", "b", "gone", "empty", "up", "slash", "dot", "bin", "dev/console"] {
            assert_eq!(root.program(path.as_bytes()), None, "{path}");
        }
        for n in 1..=41 {
            let target = if n == 1 { "bin/busybox".into() } else { format!("chain{}", n - 1) };
            root.add_link(format!("chain{n}").as_bytes(), target.into());
        }
        assert!(root.program(b"chain40").is_some() && root.program(b"chain41").is_none());
    }

    #[test]
    fn paths_are_bytes() {
        let mut root = root_fs();
        root.add_folder(b"caf\xe9");
        root.add_link(b"init", b"caf\xe9/r\xe9sum\xe9".to_vec());
        root.open(b"caf\xe9/r\xe9sum\xe9", REGULAR, None).unwrap();
        assert!(root.program(b"init").is_some());
    }
}
