//! `scx-vsock meta`: the description of a scheduler's stats.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use scx_vsock::stats::meta::{Field, MAX_DEPTH, Struct};
use scx_vsock::{Meta as Description, SchedStatsError};

use crate::display::{BOLD, DIM, clean};
use crate::output;
use crate::output::eprintln;
use crate::target::Target;

/// The most fields that are listed: a guest can describe more than there is time to print.
const MAX_LEAVES: usize = 10_000;

/// The widest name and kind that columns are aligned to.
const MAX_COLUMN: usize = 40;

/// List the stats that a scheduler can report
///
/// Each field has a kind and a description. A kind is i64, u64, float, string or the name of a struct; [KIND] is an array,
/// and {KEY:KIND} is a dict. If several structs may be what stats answers, each of them says so: the answer decides.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock meta vsock://3
  scx-vsock meta hybrid:/run/guest1/v.sock --fields | cut -f 1
  scx-vsock meta scx:/var/run/scx/root/stats --json")]
pub struct Meta {
    #[command(flatten)]
    guest: Target,

    /// Print a line for each field: path, kind and description, separated by tabs; * in a path is any key or index
    #[arg(long, conflicts_with = "json")]
    fields: bool,

    /// Print the JSON that the scheduler sent
    #[arg(long)]
    json: bool,
}

impl Meta {
    /// Reads the description and prints it.
    pub fn run(&self) -> Result<ExitCode> {
        let answer = self.guest.client().stats_meta()?;
        let text = if self.json {
            format!("{answer}\n")
        } else {
            let meta = serde_json::from_value(answer).map_err(malformed)?;
            if self.fields { list(&meta) } else { Tree::of(&meta).text() }
        };
        output::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn malformed(error: serde_json::Error) -> SchedStatsError {
    SchedStatsError::MalformedResponse { reason: format!("stats_meta does not describe structs: {error}") }
}

/// A line for each leaf.
fn list(meta: &Description) -> String {
    let mut text = String::new();
    let mut leaves = meta.tops().flat_map(|top| meta.leaves(top));
    for leaf in leaves.by_ref().take(MAX_LEAVES) {
        let kind = leaf.field.data.kind().map(ToString::to_string).unwrap_or_default();
        let desc = leaf.field.desc.as_deref().unwrap_or_default();
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{}\t{}\t{}", clean(&leaf.to_string()), clean(&kind), clean(desc));
    }
    if leaves.next().is_some() {
        eprintln!("scx-vsock: only the first {MAX_LEAVES} fields are listed; --json prints the whole description");
    }
    text
}

/// The fields as an indented tree. Each struct is expanded where it occurs first.
struct Tree<'m> {
    meta: &'m Description,
    rows: Vec<Row>,
    expanded: BTreeSet<&'m str>,
}

struct Row {
    name: String,
    kind: String,
    desc: String,
}

impl<'m> Tree<'m> {
    fn of(meta: &'m Description) -> Self {
        let mut tree = Self { meta, rows: Vec::new(), expanded: BTreeSet::new() };
        let answers = meta.tops().filter(|top| top.top).count();
        for top in meta.tops() {
            let mut desc = clean_text(top.desc.as_deref());
            if top.top && answers > 1 {
                let _written = write!(desc, " (1 of {answers} that an answer may be)");
            }
            tree.rows.push(Row { name: clean(&top.name), kind: String::new(), desc: desc.trim_start().to_owned() });
            tree.expand(top, 1);
        }
        tree
    }

    fn expand(&mut self, of: &'m Struct, depth: usize) {
        for (name, field) in &of.fields {
            let inner = self.meta.struct_of(field);
            let repeated = inner.is_some_and(|inner| depth >= MAX_DEPTH || !self.expanded.insert(&inner.name));
            self.rows.push(row(name, field, depth, repeated));
            if let Some(inner) = inner.filter(|_| !repeated) {
                self.expand(inner, depth + 1);
            }
        }
    }

    fn text(&self) -> String {
        let width = |of: fn(&Row) -> &str| {
            self.rows.iter().map(|row| of(row).chars().count()).filter(|width| *width <= MAX_COLUMN).max().unwrap_or(0)
        };
        let (names, kinds) = (width(|row| &row.name), width(|row| &row.kind));
        let mut text = String::new();
        for Row { name, kind, desc } in &self.rows {
            // Writing to a string cannot fail.
            let _written = match kind.as_str() {
                "" => writeln!(text, "{BOLD}{name}{BOLD:#}  {desc}"),
                _ => writeln!(text, "{name:<names$}  {DIM}{kind:<kinds$}{DIM:#}  {desc}"),
            };
        }
        text
    }
}

fn row(name: &str, field: &Field, depth: usize, repeated: bool) -> Row {
    let mut desc = clean_text(field.desc.as_deref());
    if repeated {
        desc += " (see above)";
    }
    Row { name: format!("{:width$}{}", "", clean(name), width = 2 * depth), kind: clean(&field.data.to_string()), desc }
}

fn clean_text(desc: Option<&str>) -> String {
    clean(desc.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn description() -> Description {
        let counters = json!({ "datum": { "struct": "Counters" }, "desc": "all of them" });
        let all = json!({ "dict": { "key": "u64", "datum": { "struct": "Counters" } } });
        serde_json::from_value(json!({
            "Top": { "name": "Top", "desc": "the \u{1b}[2Jtop", "top": "true", "fields": {
                "a": counters, "each": all, "load": { "array": "float", "desc": "by\tminute" } } },
            "Counters": { "name": "Counters", "fields": { "n.o": { "datum": "u64", "desc": "a number" } } },
        }))
        .unwrap()
    }

    #[test]
    fn a_tree_expands_each_struct_once() {
        let text = anstream::adapter::strip_str(&Tree::of(&description()).text()).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "Top  the \\u{1b}[2Jtop",
                "  a      Counters        all of them",
                "    n.o  u64             a number",
                "  each   {u64:Counters}   (see above)",
                "  load   [float]         by\\tminute",
            ]
        );
    }

    #[test]
    fn structs_that_may_be_the_answer_say_so() {
        let meta: Description = serde_json::from_value(json!({
            "A": { "name": "A", "top": "true", "desc": "first", "fields": { "n": { "datum": "u64" } } },
            "B": { "name": "B", "top": "true", "fields": { "n": { "datum": "u64" } } },
            "C": { "name": "C", "fields": { "n": { "datum": "u64" } } },
        }))
        .unwrap();
        let names = Tree::of(&meta).rows.into_iter().filter(|row| row.kind.is_empty());
        let lines: Vec<String> = names.map(|row| format!("{} {}", row.name, row.desc)).collect();
        assert_eq!(lines, ["A first (1 of 2 that an answer may be)", "B (1 of 2 that an answer may be)", "C "]);
    }

    #[test]
    fn fields_are_lines_of_three_columns() {
        assert_eq!(
            list(&description()),
            "a.n\\.o\tu64\ta number\neach.*.n\\.o\tu64\ta number\nload.*\tfloat\tby\\tminute\n"
        );
    }

    #[test]
    fn cycles_and_endless_descriptions_are_truncated() {
        let meta = serde_json::from_value(json!({
            "A": { "name": "A", "top": true, "fields": { "a": { "datum": { "struct": "A" } }, "b": { "datum": "u64" } } },
        }));
        let meta: Description = meta.unwrap();
        assert_eq!(Tree::of(&meta).rows.len(), 1 + 2 + 2);
        let structs = (0..60).map(|n| {
            let next = json!({ "datum": { "struct": format!("S{}", n + 1) } });
            let fields = json!({ "a": next, "b": next });
            (format!("S{n}"), json!({ "name": format!("S{n}"), "top": n == 0, "fields": fields }))
        });
        let meta: Description = serde_json::from_value(structs.collect()).unwrap();
        assert_eq!(list(&meta).lines().count(), MAX_LEAVES);
        assert!(Tree::of(&meta).rows.len() < 200);
    }
}
