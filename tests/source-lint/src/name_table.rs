//! What each scope of a crate defines and imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use syn::ext::IdentExt;
use syn::{ForeignItem, Ident, Item, ItemEnum, ItemUse, Visibility};

use crate::cfg::is_test_only;
use crate::module_tree::Module;
use crate::use_tree::{Binds, imports_of};

/// The namespaces of Rust, in which one name can mean different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Types, traits, modules.
    Type,
    /// Functions, constants, statics, constructors.
    Value,
    /// Macros.
    Macro,
}

/// A scope of a [`NameTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScopeId(usize);

/// A definition of a [`NameTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefinitionId(usize);

/// What encloses a scope.
#[derive(Clone, Copy, Debug)]
pub enum Enclosing {
    /// Nothing: it is the root of the crate.
    Root,
    /// This module; the scope is a module, too, and does not see its names.
    Module(ScopeId),
    /// This module or block; the scope is a block and sees its names.
    Block(ScopeId),
}

/// A module or a block with items.
#[derive(Debug)]
pub struct Scope {
    /// The file that it is in.
    pub file: Rc<Path>,
    /// What encloses it.
    pub enclosing: Enclosing,
    /// Its names.
    pub bindings: BTreeMap<String, Vec<Binding>>,
    /// Its glob imports.
    pub globs: Vec<Glob>,
}

/// One meaning of a name in a scope.
#[derive(Clone, Debug)]
pub struct Binding {
    /// What the name means.
    pub meaning: Meaning,
    /// Whether scopes that are not inside this one can see it.
    pub public: bool,
}

/// What a name means.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// An item, in these namespaces.
    Item(DefinitionId, &'static [Namespace]),
    /// A module.
    Module(ScopeId),
    /// What this path means.
    Import(Vec<String>),
}

/// An import of every name.
#[derive(Clone, Debug)]
pub struct Glob {
    /// The module or enum.
    pub path: Vec<String>,
    /// Whether scopes that are not inside this one see the names.
    pub public: bool,
}

/// An item that has a name.
#[derive(Debug)]
pub struct Definition {
    /// The scope that it is in.
    pub scope: ScopeId,
    /// The file that it is in.
    pub file: Rc<Path>,
    /// The variants of an enum.
    pub variants: BTreeSet<String>,
    /// The files with inherent implementations that define this name.
    pub associated: BTreeMap<String, BTreeSet<Rc<Path>>>,
}

/// The names of a crate, without those of its tests.
#[derive(Debug, Default)]
pub struct NameTable {
    scopes: Vec<Scope>,
    definitions: Vec<Definition>,
    macros: BTreeMap<String, Vec<DefinitionId>>,
}

/// The scope of a crate's root.
pub const ROOT: ScopeId = ScopeId(0);

impl NameTable {
    /// Enters the names of a crate. Returns each module that is compiled without tests, with its scope.
    pub fn of_crate(root: &Module) -> (Self, Vec<(ScopeId, &Module)>) {
        let mut table = Self::default();
        let mut modules = Vec::new();
        if !root.test_only {
            table.add_module(root, Enclosing::Root, &mut modules);
        }
        (table, modules)
    }

    /// The scope of an id, if the id is of this table.
    pub fn scope(&self, id: ScopeId) -> Option<&Scope> {
        self.scopes.get(id.0)
    }

    /// The definition of an id, if the id is of this table.
    pub fn definition(&self, id: DefinitionId) -> Option<&Definition> {
        self.definitions.get(id.0)
    }

    /// The `macro_rules!` of this name in any scope.
    pub fn macros(&self, name: &str) -> &[DefinitionId] {
        self.macros.get(name).map_or(&[], Vec::as_slice)
    }

    /// Enters a scope with these items.
    pub fn add_scope<'a>(
        &mut self,
        file: &Rc<Path>,
        enclosing: Enclosing,
        items: impl IntoIterator<Item = &'a Item>,
    ) -> ScopeId {
        let id = ScopeId(self.scopes.len());
        self.scopes.push(Scope { file: Rc::clone(file), enclosing, bindings: BTreeMap::new(), globs: Vec::new() });
        for item in items {
            self.add_item(id, item);
        }
        id
    }

    /// Enters a name that an inherent implementation in a file defines.
    pub fn add_associated(&mut self, id: DefinitionId, name: String, file: Rc<Path>) {
        if let Some(definition) = self.definitions.get_mut(id.0) {
            definition.associated.entry(name).or_default().insert(file);
        }
    }

    fn add_module<'a>(
        &mut self,
        module: &'a Module,
        enclosing: Enclosing,
        modules: &mut Vec<(ScopeId, &'a Module)>,
    ) -> ScopeId {
        let id = self.add_scope(&module.file, enclosing, &module.items);
        modules.push((id, module));
        for child in module.modules.iter().filter(|child| !child.test_only) {
            let scope = self.add_module(child, Enclosing::Module(id), modules);
            self.bind(id, child.name.clone(), Meaning::Module(scope), child.public);
        }
        id
    }

    fn add_item(&mut self, scope: ScopeId, item: &Item) {
        use Namespace::{Type, Value};
        match item {
            Item::Const(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Value]),
            Item::Static(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Value]),
            Item::Fn(item) => self.define(scope, &item.attrs, &item.sig.ident, &item.vis, &[Value]),
            Item::Struct(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Type, Value]),
            Item::Union(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Type]),
            Item::Trait(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Type]),
            Item::TraitAlias(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Type]),
            Item::Type(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Type]),
            Item::Enum(item) => self.define_enum(scope, item),
            Item::Macro(item) => self.define_macro(scope, item),
            Item::ForeignMod(item) => item.items.iter().for_each(|item| self.define_foreign(scope, item)),
            Item::Use(item) => self.import(scope, item),
            _ => {}
        }
    }

    fn define(
        &mut self,
        scope: ScopeId,
        attributes: &[syn::Attribute],
        ident: &Ident,
        visibility: &Visibility,
        namespaces: &'static [Namespace],
    ) {
        if !is_test_only(attributes) {
            let id = self.add_definition(scope, BTreeSet::new());
            self.bind(scope, ident.unraw().to_string(), Meaning::Item(id, namespaces), is_public(visibility));
        }
    }

    fn define_enum(&mut self, scope: ScopeId, item: &ItemEnum) {
        if !is_test_only(&item.attrs) {
            let variants = item.variants.iter().map(|variant| variant.ident.unraw().to_string()).collect();
            let id = self.add_definition(scope, variants);
            let meaning = Meaning::Item(id, &[Namespace::Type]);
            self.bind(scope, item.ident.unraw().to_string(), meaning, is_public(&item.vis));
        }
    }

    fn define_macro(&mut self, scope: ScopeId, item: &syn::ItemMacro) {
        let Some(ident) = item.ident.as_ref().filter(|_| !is_test_only(&item.attrs)) else { return };
        let name = ident.unraw().to_string();
        let id = self.add_definition(scope, BTreeSet::new());
        let meaning = Meaning::Item(id, &[Namespace::Macro]);
        if item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
            self.bind(ROOT, name.clone(), meaning.clone(), true);
        }
        self.bind(scope, name.clone(), meaning, true);
        self.macros.entry(name).or_default().push(id);
    }

    fn define_foreign(&mut self, scope: ScopeId, item: &ForeignItem) {
        match item {
            ForeignItem::Fn(item) => self.define(scope, &item.attrs, &item.sig.ident, &item.vis, &[Namespace::Value]),
            ForeignItem::Static(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Namespace::Value]),
            ForeignItem::Type(item) => self.define(scope, &item.attrs, &item.ident, &item.vis, &[Namespace::Type]),
            _ => {}
        }
    }

    fn import(&mut self, scope: ScopeId, item: &ItemUse) {
        if is_test_only(&item.attrs) {
            return;
        }
        let public = is_public(&item.vis);
        for import in imports_of(item) {
            match import.binds {
                Binds::Name(name) => self.bind(scope, name, Meaning::Import(import.path), public),
                Binds::Everything => self.add_glob(scope, Glob { path: import.path, public }),
                Binds::Nothing => {}
            }
        }
    }

    fn add_glob(&mut self, scope: ScopeId, glob: Glob) {
        if let Some(scope) = self.scopes.get_mut(scope.0) {
            scope.globs.push(glob);
        }
    }

    fn bind(&mut self, scope: ScopeId, name: String, meaning: Meaning, public: bool) {
        if let Some(scope) = self.scopes.get_mut(scope.0) {
            scope.bindings.entry(name).or_default().push(Binding { meaning, public });
        }
    }

    fn add_definition(&mut self, scope: ScopeId, variants: BTreeSet<String>) -> DefinitionId {
        let id = DefinitionId(self.definitions.len());
        if let Some(file) = self.scope(scope).map(|scope| Rc::clone(&scope.file)) {
            self.definitions.push(Definition { scope, file, variants, associated: BTreeMap::new() });
        }
        id
    }
}

/// Whether more than the module itself and what is inside it can see an item.
pub fn is_public(visibility: &Visibility) -> bool {
    match visibility {
        Visibility::Public(_) => true,
        Visibility::Restricted(restricted) => !restricted.path.is_ident("self"),
        Visibility::Inherited => false,
    }
}
