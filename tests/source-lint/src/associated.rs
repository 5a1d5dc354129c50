//! Functions and constants of types, which other files than the type's can define.

use std::rc::Rc;

use syn::ext::IdentExt;
use syn::{ImplItem, Item, ItemImpl, Type};

use crate::cfg::is_test_only;
use crate::module_tree::Module;
use crate::name_table::{NameTable, ScopeId};
use crate::path_segments::segments_of;

/// Enters what the inherent implementations in these modules define.
pub fn add_associated(table: &mut NameTable, modules: &[(ScopeId, &Module)]) {
    for (scope, module) in modules {
        for item in &module.items {
            match item {
                Item::Impl(item) if item.trait_.is_none() && !is_test_only(&item.attrs) => {
                    add_implementation(table, *scope, module, item);
                }
                _ => {}
            }
        }
    }
}

fn add_implementation(table: &mut NameTable, scope: ScopeId, module: &Module, item: &ItemImpl) {
    let Type::Path(path) = &*item.self_ty else { return };
    for id in table.types(scope, &segments_of(&path.path)) {
        for name in item.items.iter().filter_map(name_of) {
            table.add_associated(id, name, Rc::clone(&module.file));
        }
    }
}

fn name_of(item: &ImplItem) -> Option<String> {
    match item {
        ImplItem::Fn(item) if !is_test_only(&item.attrs) => Some(item.sig.ident.unraw().to_string()),
        ImplItem::Const(item) if !is_test_only(&item.attrs) => Some(item.ident.unraw().to_string()),
        _ => None,
    }
}
