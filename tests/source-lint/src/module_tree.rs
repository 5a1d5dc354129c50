//! The modules of a crate, read from its root file on.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Error, Result, anyhow};
use syn::ext::IdentExt;
use syn::{Item, ItemMod, Visibility};

use crate::cfg::is_test_only;

/// Reads a source file. Tests read from memory.
pub type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// A module, with the modules inside it.
pub struct Module {
    /// The last segment of its path; empty for the root.
    pub name: String,
    /// The file that holds its items.
    pub file: Rc<Path>,
    /// Whether more than the parent can name it.
    pub public: bool,
    /// Whether only tests compile it.
    pub test_only: bool,
    /// Its items, but for modules.
    pub items: Vec<Item>,
    /// The modules declared in it, inline or in files of their own.
    pub modules: Vec<Module>,
}

/// Where the files of a module's children are.
struct Folders {
    /// For `mod child;`.
    children: PathBuf,
    /// For `#[path = "..."] mod child;`.
    attribute: PathBuf,
}

/// Reads the crate whose root is this file.
///
/// # Errors
///
/// A file that cannot be read or parsed, and a declared module that has no file.
pub fn load(root: &Path, read: Read<'_>) -> Result<Module> {
    let text = read(root).with_context(|| format!("cannot read {}", root.display()))?;
    let mut module = Module {
        name: String::new(),
        file: root.into(),
        public: true,
        test_only: false,
        items: Vec::new(),
        modules: Vec::new(),
    };
    module.parse(&text, &parent_of(root), read)?;
    Ok(module)
}

impl Module {
    /// This module and all the modules inside it.
    pub fn all(&self) -> Vec<&Self> {
        let inside = self.modules.iter().flat_map(Self::all);
        std::iter::once(self).chain(inside).collect()
    }

    /// Takes in the text of the module's file.
    fn parse(&mut self, text: &str, children: &Path, read: Read<'_>) -> Result<()> {
        let parsed = syn::parse_file(text).map_err(|error| parse_error(&self.file, &error))?;
        self.test_only |= is_test_only(&parsed.attrs);
        let folders = Folders { children: children.to_owned(), attribute: parent_of(&self.file) };
        self.add(parsed.items, &folders, read)
    }

    fn add(&mut self, items: Vec<Item>, folders: &Folders, read: Read<'_>) -> Result<()> {
        for item in items {
            match item {
                Item::Mod(declaration) => self.add_module(declaration, folders, read)?,
                other => self.items.push(other),
            }
        }
        Ok(())
    }

    fn add_module(&mut self, declaration: ItemMod, folders: &Folders, read: Read<'_>) -> Result<()> {
        let mut module = Self {
            name: declaration.ident.unraw().to_string(),
            file: Rc::clone(&self.file),
            public: !matches!(declaration.vis, Visibility::Inherited),
            test_only: self.test_only || is_test_only(&declaration.attrs),
            items: Vec::new(),
            modules: Vec::new(),
        };
        if let Some((_, items)) = declaration.content {
            let folder = folders.children.join(&module.name);
            module.add(items, &Folders { children: folder.clone(), attribute: folder }, read)?;
        } else {
            let line = declaration.mod_token.span.start().line;
            let (file, children, text) = find_file(&declaration, &module.name, folders, read)
                .with_context(|| format!("{}:{line}: module {} has no source", self.file.display(), module.name))?;
            module.file = file.into();
            module.parse(&text, &children, read)?;
        }
        self.modules.push(module);
        Ok(())
    }
}

/// Finds the file of `mod name;`. Returns its path, the folder of its children and its text.
fn find_file(
    declaration: &ItemMod,
    name: &str,
    folders: &Folders,
    read: Read<'_>,
) -> Result<(PathBuf, PathBuf, String)> {
    let in_file = folders.children.join(format!("{name}.rs"));
    let in_folder = folders.children.join(name).join("mod.rs");
    let candidates = match path_attribute(declaration) {
        Some(path) => vec![folders.attribute.join(path)],
        None => vec![in_file.clone(), in_folder],
    };
    for file in &candidates {
        match read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::new(error).context(format!("cannot read {}", file.display()))),
            Ok(text) => {
                let children = if *file == in_file { folders.children.join(name) } else { parent_of(file) };
                return Ok((file.clone(), children, text));
            }
        }
    }
    let names: Vec<String> = candidates.iter().map(|file| file.display().to_string()).collect();
    Err(anyhow!("there is no {}", names.join(" or ")))
}

/// The value of `#[path = "..."]`.
fn path_attribute(declaration: &ItemMod) -> Option<String> {
    declaration.attrs.iter().filter(|attribute| attribute.path().is_ident("path")).find_map(|attribute| {
        let value = &attribute.meta.require_name_value().ok()?.value;
        match value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
            _ => None,
        }
    })
}

fn parent_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

fn parse_error(file: &Path, error: &syn::Error) -> Error {
    let start = error.span().start();
    anyhow!("{}:{}:{}: {error}", file.display(), start.line, start.column + 1)
}

#[cfg(test)]
mod tests {
    use crate::testing::{load_tree, load_tree_error};

    fn files(tree: &[(&str, &str)]) -> Vec<String> {
        load_tree(tree).all().iter().map(|module| module.file.display().to_string()).collect()
    }

    #[test]
    fn modules_are_in_files_and_folders() {
        let tree = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "mod c;"),
            ("src/a/c.rs", ""),
            ("src/b/mod.rs", "mod d;"),
            ("src/b/d.rs", ""),
        ];
        assert_eq!(files(&tree), ["src/lib.rs", "src/a.rs", "src/a/c.rs", "src/b/mod.rs", "src/b/d.rs"]);
    }

    #[test]
    fn path_attributes_are_followed() {
        let tree =
            [("src/lib.rs", r#"#[path = "other/x.rs"] mod a;"#), ("src/other/x.rs", "mod y;"), ("src/other/y.rs", "")];
        assert_eq!(files(&tree), ["src/lib.rs", "src/other/x.rs", "src/other/y.rs"]);
    }

    #[test]
    fn inline_modules_have_folders() {
        let tree = [("src/lib.rs", "mod a { mod b; }"), ("src/a/b.rs", "")];
        assert_eq!(files(&tree), ["src/lib.rs", "src/lib.rs", "src/a/b.rs"]);
    }

    #[test]
    fn parse_errors_name_file_and_line() {
        let error = load_tree_error(&[("src/lib.rs", "\nfn 1")]);
        assert!(error.starts_with("src/lib.rs:2:4: expected identifier"), "{error}");
    }

    #[test]
    fn missing_modules_name_the_declaration() {
        let error = load_tree_error(&[("src/lib.rs", "\nmod a;")]);
        assert_eq!(error, "src/lib.rs:2: module a has no source: there is no src/a.rs or src/a/mod.rs");
    }
}
