//! The checks of crates, and what they find.

use std::collections::BTreeSet;
use std::fmt;

use crate::cycles::{Cycle, FileGraph};
use crate::functions::{Function, functions_of};
use crate::module_tree::Module;
use crate::references::references_of;

/// The lines that a function may have.
pub const MAX_FUNCTION_LINES: usize = 45;

/// What the checks of some crates found.
#[derive(Default)]
pub struct Report {
    crates: usize,
    cycles: Vec<(String, Cycle)>,
    /// A set, since crates can share a file.
    long_functions: BTreeSet<Function>,
}

impl Report {
    /// Adds what is found in a crate.
    pub fn add(&mut self, package: &str, root: &Module) {
        let cycles = FileGraph::new(references_of(root)).cycles();
        let functions = functions_of(root).into_iter();
        self.crates += 1;
        self.cycles.extend(cycles.into_iter().map(|cycle| (package.to_owned(), cycle)));
        self.long_functions.extend(functions.filter(|function| function.lines > MAX_FUNCTION_LINES));
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.cycles.is_empty() && self.long_functions.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (package, cycle) in &self.cycles {
            writeln!(f, "cycle in {package}:\n{cycle}")?;
        }
        for Function { file, line, name, lines } in &self.long_functions {
            writeln!(f, "long function: {}:{line}: {name} has {lines} lines", file.display())?;
        }
        let (crates, cycles, functions) = (self.crates, self.cycles.len(), self.long_functions.len());
        writeln!(f, "crates: {crates}; cycles: {cycles}; functions over {MAX_FUNCTION_LINES} lines: {functions}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::load_tree;

    fn report_of(tree: &[(&str, &str)]) -> Report {
        let mut report = Report::default();
        report.add("planted", &load_tree(tree));
        report
    }

    #[test]
    fn planted_cycles_are_reported() {
        let report = report_of(&[
            ("src/lib.rs", "mod a;\nmod b;"),
            ("src/a.rs", "use crate::b::B;\npub struct A(B);"),
            ("src/b.rs", "\nuse crate::a::A;\nuse crate::a;\npub struct B(Vec<a::A>);"),
        ]);
        assert!(!report.is_clean());
        assert_eq!(
            report.to_string(),
            "cycle in planted:\n  \
             src/a.rs -> src/b.rs (line 1: crate::b::B, and 1 more)\n  \
             src/b.rs -> src/a.rs (line 2: crate::a::A, and 1 more)\n\
             crates: 1; cycles: 1; functions over 45 lines: 0\n"
        );
    }

    #[test]
    fn functions_over_the_limit_are_reported() {
        let text = format!("fn short() {{{}}}\nfn long() {{{}}}", "\n".repeat(44), "\n".repeat(45));
        let report = report_of(&[("src/lib.rs", &text)]);
        assert!(!report.is_clean());
        assert!(report.to_string().starts_with("long function: src/lib.rs:46: long has 46 lines\n"), "{report}");
    }

    #[test]
    fn clean_crates_are_counted() {
        let report = report_of(&[("src/lib.rs", "")]);
        assert!(report.is_clean());
        assert_eq!(report.to_string(), "crates: 1; cycles: 0; functions over 45 lines: 0\n");
    }
}
