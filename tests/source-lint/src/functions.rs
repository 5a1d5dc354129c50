//! The lengths of functions.

use std::path::Path;
use std::rc::Rc;

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Block, Signature};

use crate::module_tree::Module;

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Its file.
    pub file: Rc<Path>,
    /// The line of `fn`.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// The lines from `fn` to the closing brace, both counted.
    pub lines: usize,
}

/// The functions of a crate, those of tests and those in macros as well.
pub fn functions_of(root: &Module) -> Vec<Function> {
    root.all().into_iter().flat_map(functions_in).collect()
}

fn functions_in(module: &Module) -> Vec<Function> {
    let mut collector = Collector { file: Rc::clone(&module.file), found: Vec::new() };
    for item in &module.items {
        collector.visit_item(item);
    }
    collector.found
}

struct Collector {
    file: Rc<Path>,
    found: Vec<Function>,
}

impl Collector {
    fn add_block(&mut self, signature: &Signature, block: &Block) {
        self.add(signature.ident.to_string(), signature.fn_token.span, block.brace_token.span.close());
    }

    fn add(&mut self, name: String, start: Span, end: Span) {
        let line = start.start().line;
        let lines = end.end().line.saturating_sub(line) + 1;
        self.found.push(Function { file: Rc::clone(&self.file), line, name, lines });
    }

    /// Finds `fn name ... { ... }` among the tokens of a macro.
    fn search(&mut self, tokens: &TokenStream) {
        let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match (token, tokens.get(at + 1)) {
                (TokenTree::Group(group), _) => self.search(&group.stream()),
                (TokenTree::Ident(word), Some(TokenTree::Ident(name))) if word == "fn" => {
                    if let Some(end) = end_of_body(tokens.get(at..).unwrap_or_default()) {
                        self.add(name.to_string(), word.span(), end);
                    }
                }
                _ => {}
            }
        }
    }
}

/// The closing brace of the function that these tokens begin with.
fn end_of_body(tokens: &[TokenTree]) -> Option<Span> {
    tokens.iter().find_map(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group.span_close()),
        _ => None,
    })
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add_block(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add_block(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add_block(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        self.search(&invocation.tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::load_tree;

    fn lengths(text: &str) -> Vec<(String, usize)> {
        functions_of(&load_tree(&[("src/lib.rs", text)])).into_iter().map(|it| (it.name, it.lines)).collect()
    }

    #[test]
    fn lines_count_from_fn_to_the_brace() {
        let text = "/// Documentation.\n#[inline]\npub fn long(\n    a: u8,\n) {\n    a\n}\nfn short() {}";
        assert_eq!(lengths(text), [("long".to_owned(), 5), ("short".to_owned(), 1)]);
    }

    #[test]
    fn methods_tests_and_inner_functions_count() {
        let text = "impl A { fn a() {} } trait T { fn b() {\n} fn none(); } fn c() { fn d() {} } \
                    #[cfg(test)] mod tests { #[test] fn e() {\n\n} }";
        let expected = [("a", 1), ("b", 2), ("c", 1), ("d", 1), ("e", 3)];
        assert_eq!(lengths(text), expected.map(|(name, lines)| (name.to_owned(), lines)));
    }

    #[test]
    fn functions_inside_macros_count() {
        assert_eq!(lengths("proptest! { fn a(x in 0..9) {\n\n} }"), [("a".to_owned(), 3)]);
    }
}
