//! Which files the code of a file refers to.

use std::collections::BTreeSet;
use std::mem;
use std::path::Path;
use std::rc::Rc;

use syn::ext::IdentExt;
use syn::visit::{self, Visit};
use syn::{Ident, Item};

use crate::associated::add_associated;
use crate::cfg::is_test_only;
use crate::macro_paths::{MacroPath, paths_in};
use crate::module_tree::Module;
use crate::name_table::{Enclosing, NameTable, Namespace, ScopeId, is_public};
use crate::path_segments::{is_capitalized, segments_of};
use crate::resolve::Origin;
use crate::use_tree::{Binds, Import, imports_of};

/// A place in one file that names what another file defines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The file with the path.
    pub from: Rc<Path>,
    /// The file with the item.
    pub to: Rc<Path>,
    /// The line of the path.
    pub line: usize,
    /// The path as it is written.
    pub path: String,
}

/// The references of a crate's code between its files, without those of tests.
///
/// A path refers to the file that defines its item, wherever it was re-exported on the way. A `use` refers to what it
/// names, unless it re-exports an item of its own module's children.
pub fn references_of(root: &Module) -> BTreeSet<Reference> {
    let (mut table, modules) = NameTable::of_crate(root);
    add_associated(&mut table, &modules);
    let mut found = BTreeSet::new();
    for (scope, module) in modules {
        let mut collector = Collector::new(&mut table, module, scope);
        for item in &module.items {
            collector.visit_item(item);
        }
        collector.refer_to_unused_globs();
        found.append(&mut collector.found);
    }
    found
}

const ITEMS: &[Namespace] = &[Namespace::Type, Namespace::Value];
const EVERYTHING: &[Namespace] = &[Namespace::Type, Namespace::Value, Namespace::Macro];
const MACROS: &[Namespace] = &[Namespace::Macro];

/// Visits a module's items and resolves the paths in them.
struct Collector<'a> {
    table: &'a mut NameTable,
    file: Rc<Path>,
    /// The innermost module or block that encloses what is visited.
    scope: ScopeId,
    /// The type of the implementation that is visited: `Self`.
    self_type: Option<Vec<String>>,
    /// The variables and generic parameters bound so far in the item that is visited.
    locals: BTreeSet<String>,
    /// The first segments of all paths: a glob import that binds none of them is unused as far as can be seen.
    names: BTreeSet<String>,
    /// The glob imports that re-export nothing.
    globs: Vec<(ScopeId, Import)>,
    found: BTreeSet<Reference>,
}

impl<'a> Collector<'a> {
    fn new(table: &'a mut NameTable, module: &Module, scope: ScopeId) -> Self {
        Self {
            table,
            file: Rc::clone(&module.file),
            scope,
            self_type: None,
            locals: BTreeSet::new(),
            names: BTreeSet::new(),
            globs: Vec::new(),
            found: BTreeSet::new(),
        }
    }

    fn refer(&mut self, written: &[String], line: usize, namespaces: &[Namespace]) {
        let path = match (written, &self.self_type) {
            ([first, rest @ ..], Some(self_type)) if first == "Self" => [self_type, rest].concat(),
            ([name], _) if self.locals.contains(name) => return,
            _ => written.to_vec(),
        };
        self.names.extend(path.first().cloned());
        let origins = self.table.origins(self.scope, &path, namespaces);
        self.add(origins, line, &written.join("::"));
    }

    fn add(&mut self, origins: BTreeSet<Origin>, line: usize, path: &str) {
        let elsewhere = origins.into_iter().filter(|origin| origin.file != self.file);
        self.found.extend(elsewhere.map(|origin| Reference {
            from: Rc::clone(&self.file),
            to: origin.file,
            line,
            path: path.to_owned(),
        }));
    }

    fn import(&mut self, import: Import, re_exports: bool) {
        let mut origins = self.table.origins(self.scope, &import.path, EVERYTHING);
        if import.binds == Binds::Everything {
            if re_exports {
                origins.extend(self.table.module_origins(self.scope, &import.path));
            } else {
                self.globs.push((self.scope, import.clone()));
            }
        }
        if re_exports {
            origins.retain(|origin| !self.table.is_inside(origin.scope, self.scope));
        }
        self.add(origins, import.line, &import.text());
    }

    /// Makes a glob import that binds no visible name, as of traits whose methods are called, a reference to its module.
    fn refer_to_unused_globs(&mut self) {
        for (scope, import) in mem::take(&mut self.globs) {
            if !self.names.iter().any(|name| self.table.glob_binds(scope, &import.path, name)) {
                let origins = self.table.module_origins(scope, &import.path);
                self.add(origins, import.line, &import.text());
            }
        }
    }

    /// Visits an item whose variables and parameters end with it.
    fn within_item(&mut self, visit: impl FnOnce(&mut Self)) {
        let locals = self.locals.clone();
        visit(self);
        self.locals = locals;
    }

    fn refer_from_macro(&mut self, path: &MacroPath) {
        self.refer(&path.segments, path.line, if path.calls_macro { MACROS } else { ITEMS });
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    // The paths of attributes and of `pub(in path)` are no use of an item.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
    // Modules are visited one by one; a module inside a block is not supported.
    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {}

    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test_only(attributes_of(item)) {
            self.within_item(|this| visit::visit_item(this, item));
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let self_type = match &*item.self_ty {
            syn::Type::Path(path) if path.qself.is_none() => Some(segments_of(&path.path)),
            _ => None,
        };
        let outer = mem::replace(&mut self.self_type, self_type);
        visit::visit_item_impl(self, item);
        self.self_type = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for import in imports_of(item) {
            self.import(import, is_public(&item.vis));
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test_only(&item.attrs) {
            self.within_item(|this| visit::visit_impl_item_fn(this, item));
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if !is_test_only(&item.attrs) {
            self.within_item(|this| visit::visit_trait_item_fn(this, item));
        }
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        if !is_test_only(&item.attrs) {
            visit::visit_impl_item_const(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_test_only(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !is_test_only(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !is_test_only(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !is_test_only(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !is_test_only(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_stmt_macro(&mut self, statement: &'ast syn::StmtMacro) {
        if !is_test_only(&statement.attrs) {
            visit::visit_stmt_macro(self, statement);
        }
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let items: Vec<&Item> = block
            .stmts
            .iter()
            .filter_map(|it| if let syn::Stmt::Item(item) = it { Some(item) } else { None })
            .collect();
        let outer = self.scope;
        if !items.is_empty() {
            self.scope = self.table.add_scope(&self.file, Enclosing::Block(outer), items);
        }
        visit::visit_block(self, block);
        self.scope = outer;
    }

    fn visit_type_param(&mut self, parameter: &'ast syn::TypeParam) {
        self.locals.insert(parameter.ident.to_string());
        visit::visit_type_param(self, parameter);
    }

    fn visit_const_param(&mut self, parameter: &'ast syn::ConstParam) {
        self.locals.insert(parameter.ident.to_string());
        visit::visit_const_param(self, parameter);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        let name = pattern.ident.unraw().to_string();
        // A capitalized name is a constant or a variant, another one a new variable.
        if is_capitalized(&name) {
            self.refer(&[name], line_of(&pattern.ident), ITEMS);
        } else {
            self.locals.insert(name);
        }
        visit::visit_pat_ident(self, pattern);
    }

    fn visit_expr_path(&mut self, expression: &'ast syn::ExprPath) {
        if let Some(qself) = expression.qself.as_ref().filter(|qself| qself.position == 0) {
            visit::visit_qself(self, qself);
        } else {
            visit::visit_expr_path(self, expression);
        }
    }

    fn visit_type_path(&mut self, path: &'ast syn::TypePath) {
        if let Some(qself) = path.qself.as_ref().filter(|qself| qself.position == 0) {
            visit::visit_qself(self, qself);
        } else {
            visit::visit_type_path(self, path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first() {
            self.refer(&segments_of(path), line_of(&first.ident), ITEMS);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        if let Some(first) = invocation.path.segments.first() {
            self.refer(&segments_of(&invocation.path), line_of(&first.ident), MACROS);
        }
        for path in paths_in(&invocation.tokens) {
            self.refer_from_macro(&path);
        }
    }
}

fn line_of(ident: &Ident) -> usize {
    ident.span().start().line
}

fn attributes_of(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
