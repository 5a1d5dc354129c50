//! Use declarations, taken apart into one import a name.

use syn::ext::IdentExt;
use syn::{Ident, ItemUse, UseTree};

use crate::path_segments::OTHER_CRATE;

/// One import of a use declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The segments of the path, without `*`.
    pub path: Vec<String>,
    /// What it binds.
    pub binds: Binds,
    /// The line of the last segment.
    pub line: usize,
}

/// What an import binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binds {
    /// One name.
    Name(String),
    /// Every name of a module or an enum.
    Everything,
    /// No name: `as _`.
    Nothing,
}

impl Import {
    /// The path as it is written.
    pub fn text(&self) -> String {
        let glob = if self.binds == Binds::Everything { "::*" } else { "" };
        format!("{}{glob}", self.path.join("::"))
    }
}

/// The imports of a declaration.
pub fn imports_of(item: &ItemUse) -> Vec<Import> {
    let mut imports = Vec::new();
    let start = if item.leading_colon.is_some() { vec![OTHER_CRATE.to_owned()] } else { Vec::new() };
    take_apart(&item.tree, &start, &mut imports);
    imports
}

fn take_apart(tree: &UseTree, before: &[String], imports: &mut Vec<Import>) {
    match tree {
        UseTree::Path(path) => take_apart(&path.tree, &joined(before, &path.ident), imports),
        UseTree::Group(group) => group.items.iter().for_each(|tree| take_apart(tree, before, imports)),
        UseTree::Name(name) => imports.push(import(before, &name.ident, None)),
        UseTree::Rename(rename) => imports.push(import(before, &rename.ident, Some(&rename.rename))),
        UseTree::Glob(glob) => {
            let line = glob.star_token.span.start().line;
            imports.push(Import { path: before.to_vec(), binds: Binds::Everything, line });
        }
    }
}

fn import(before: &[String], name: &Ident, rename: Option<&Ident>) -> Import {
    let path = if name == "self" && !before.is_empty() { before.to_vec() } else { joined(before, name) };
    let binds = match rename.map(|ident| ident.unraw().to_string()).or_else(|| path.last().cloned()) {
        Some(name) if name != "_" => Binds::Name(name),
        _ => Binds::Nothing,
    };
    Import { path, binds, line: name.span().start().line }
}

fn joined(before: &[String], ident: &Ident) -> Vec<String> {
    before.iter().cloned().chain([ident.unraw().to_string()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(text: &str) -> Vec<(String, Binds)> {
        let item: ItemUse = syn::parse_str(text).unwrap();
        imports_of(&item).iter().map(|import| (import.text(), import.binds.clone())).collect()
    }

    #[test]
    fn groups_are_taken_apart() {
        let name = |path: &str, name: &str| (path.to_owned(), Binds::Name(name.to_owned()));
        let expected = [
            name("crate::a", "a"),
            name("crate::a::B", "B"),
            name("crate::a::c::D", "E"),
            ("crate::a::f::*".to_owned(), Binds::Everything),
            ("crate::a::G".to_owned(), Binds::Nothing),
        ];
        assert_eq!(imports("use crate::a::{self, B, c::D as E, f::*, G as _};"), expected);
    }

    #[test]
    fn leading_colons_are_kept() {
        let item: ItemUse = syn::parse_str("use ::a::B;").unwrap();
        assert_eq!(imports_of(&item)[0].path, [OTHER_CRATE, "a", "B"]);
    }
}
