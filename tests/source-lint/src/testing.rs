//! Source trees in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::module_tree::{Module, load};

fn load_from(tree: &[(&str, &str)]) -> anyhow::Result<Module> {
    let files: BTreeMap<&Path, &str> = tree.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
    let root = Path::new(tree[0].0);
    load(root, &|path| files.get(path).map(|text| (*text).to_owned()).ok_or(io::ErrorKind::NotFound.into()))
}

/// Loads the crate whose root is the first of these files.
pub fn load_tree(tree: &[(&str, &str)]) -> Module {
    load_from(tree).unwrap()
}

/// Returns why the crate cannot be loaded.
pub fn load_tree_error(tree: &[(&str, &str)]) -> String {
    format!("{:#}", load_from(tree).err().unwrap())
}
