//! The graph of files, and its cycles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::rc::Rc;

use crate::references::Reference;

/// Files that refer to each other.
pub struct FileGraph {
    /// The references from a file to a file, in the order of lines.
    edges: BTreeMap<Rc<Path>, BTreeMap<Rc<Path>, Vec<Reference>>>,
}

/// Files each of which refers to the next, and the last to the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cycle {
    /// One for each file.
    edges: Vec<Edge>,
}

/// How a file refers to the next one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    first: Reference,
    others: usize,
}

impl FileGraph {
    /// The graph of a crate's references.
    pub fn new(references: BTreeSet<Reference>) -> Self {
        let mut edges: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
        for reference in references {
            let to = edges.entry(Rc::clone(&reference.from)).or_default();
            to.entry(Rc::clone(&reference.to)).or_default().push(reference);
        }
        Self { edges }
    }

    /// Cycles that together have every edge that is in a cycle at all, the shortest first.
    pub fn cycles(&self) -> Vec<Cycle> {
        let pairs = self.edges.iter().flat_map(|(from, to)| to.keys().map(move |to| (from, to)));
        let shortest: BTreeSet<Vec<Rc<Path>>> =
            pairs.filter_map(|(from, to)| self.shortest_through(from, to)).collect();
        let mut by_length: Vec<Vec<Rc<Path>>> = shortest.into_iter().collect();
        by_length.sort_by_key(Vec::len);
        let mut covered = BTreeSet::new();
        let mut cycles = Vec::new();
        for files in by_length {
            let edges: Vec<_> = files.iter().cloned().zip(files.iter().skip(1).chain(files.first()).cloned()).collect();
            if edges.iter().any(|edge| !covered.contains(edge)) {
                cycles.push(Cycle { edges: edges.iter().filter_map(|(from, to)| self.edge(from, to)).collect() });
                covered.extend(edges);
            }
        }
        cycles
    }

    /// The files of a shortest cycle that has this edge, the least of them first.
    fn shortest_through(&self, from: &Rc<Path>, to: &Rc<Path>) -> Option<Vec<Rc<Path>>> {
        let mut files = self.shortest_path(to, from)?;
        let least = files.iter().enumerate().min_by_key(|(_, file)| Rc::clone(file)).map_or(0, |(at, _)| at);
        files.rotate_left(least);
        Some(files)
    }

    fn shortest_path(&self, from: &Rc<Path>, to: &Rc<Path>) -> Option<Vec<Rc<Path>>> {
        let mut before = BTreeMap::from([(Rc::clone(from), None)]);
        let mut queue = VecDeque::from([Rc::clone(from)]);
        while let Some(file) = queue.pop_front() {
            if file == *to {
                let step = |file: &Rc<Path>| before.get(file).cloned().flatten();
                let mut path: Vec<_> = std::iter::successors(Some(file), step).collect();
                path.reverse();
                return Some(path);
            }
            for next in self.edges.get(&file).into_iter().flat_map(BTreeMap::keys) {
                if !before.contains_key(next) {
                    before.insert(Rc::clone(next), Some(Rc::clone(&file)));
                    queue.push_back(Rc::clone(next));
                }
            }
        }
        None
    }

    fn edge(&self, from: &Rc<Path>, to: &Rc<Path>) -> Option<Edge> {
        let (first, others) = self.edges.get(from)?.get(to)?.split_first()?;
        Some(Edge { first: first.clone(), others: others.len() })
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.edges.iter().map(Edge::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reference { from, to, line, path } = &self.first;
        write!(f, "  {} -> {} (line {line}: {path}", from.display(), to.display())?;
        match self.others {
            0 => write!(f, ")"),
            others => write!(f, ", and {others} more)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles(edges: &[(&str, &str)]) -> Vec<String> {
        let reference = |(at, (from, to)): (usize, &(&str, &str))| Reference {
            from: Path::new(from).into(),
            to: Path::new(to).into(),
            line: at,
            path: String::new(),
        };
        let cycles = FileGraph::new(edges.iter().enumerate().map(reference).collect()).cycles();
        let files = |cycle: &Cycle| cycle.edges.iter().map(|edge| edge.first.from.display().to_string()).collect();
        cycles
            .iter()
            .map(|cycle| {
                let files: Vec<String> = files(cycle);
                files.join(" ")
            })
            .collect()
    }

    #[test]
    fn two_files_make_a_cycle() {
        assert_eq!(cycles(&[("b", "a"), ("a", "b"), ("b", "c")]), ["a b"]);
    }

    #[test]
    fn three_files_make_a_cycle() {
        assert_eq!(cycles(&[("b", "c"), ("c", "a"), ("a", "b"), ("a", "c")]), ["a c", "a b c"]);
    }

    #[test]
    fn separate_cycles_are_all_found() {
        assert_eq!(cycles(&[("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "c")]), ["a b", "c d"]);
    }

    #[test]
    fn each_edge_in_a_cycle_is_shown() {
        let edges = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a"), ("c", "a")];
        assert_eq!(cycles(&edges), ["a b c", "a b c d"]);
    }

    #[test]
    fn trees_have_no_cycle() {
        assert!(cycles(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]).is_empty());
    }
}
