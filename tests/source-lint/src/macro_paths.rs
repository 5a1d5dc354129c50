//! Paths in the tokens of macros, which only the macro can parse.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::ext::IdentExt;

use crate::path_segments::is_capitalized;

/// A path among the tokens of a macro.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacroPath {
    /// Its segments; `$crate` is `crate`.
    pub segments: Vec<String>,
    /// Whether `!` follows.
    pub calls_macro: bool,
    /// The line of its first segment.
    pub line: usize,
}

/// Names after these are defined there.
const DEFINING: [&str; 9] = ["fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod"];

/// The paths of several segments among these tokens, and the single names that are called or written as types are.
pub fn paths_in(tokens: &TokenStream) -> Vec<MacroPath> {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut paths = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Group(group) => paths.extend(paths_in(&group.stream())),
            TokenTree::Ident(first) => {
                let rest = tokens.get(at..).unwrap_or_default();
                let segments = leading_path(rest);
                let before = tokens.get(..at).unwrap_or_default();
                let length = 3 * segments.len() - 2;
                paths.extend(path_of(first, before, segments, rest.get(length..).unwrap_or_default()));
                at += length - 1;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        at += 1;
    }
    paths
}

/// The segments of the path that these tokens begin with.
fn leading_path(tokens: &[TokenTree]) -> Vec<String> {
    let mut segments = Vec::new();
    let mut rest = tokens;
    while let [TokenTree::Ident(ident), after @ ..] = rest {
        segments.push(ident.unraw().to_string());
        let [TokenTree::Punct(one), TokenTree::Punct(two), next @ ..] = after else { break };
        if (one.as_char(), two.as_char()) != (':', ':') {
            break;
        }
        rest = next;
    }
    segments
}

fn path_of(first: &Ident, before: &[TokenTree], segments: Vec<String>, after: &[TokenTree]) -> Option<MacroPath> {
    let calls_macro = is_punct(after.first(), '!') && !is_punct(after.get(1), '=');
    let named = match segments.as_slice() {
        [name] => is_capitalized(name) || calls_macro || is_call(after),
        _ => true,
    };
    let line = first.span().start().line;
    (named && begins_path(first, before)).then_some(MacroPath { segments, calls_macro, line })
}

fn is_call(after: &[TokenTree]) -> bool {
    matches!(after.first(), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis)
}

/// Whether a name after these tokens is not a field, a method, a lifetime, a macro's variable, a part of a longer path
/// or a definition.
fn begins_path(name: &Ident, before: &[TokenTree]) -> bool {
    match before {
        [.., TokenTree::Ident(word)] => !DEFINING.contains(&word.to_string().as_str()),
        [.., TokenTree::Punct(dot), TokenTree::Punct(last)] if dot.as_char() == '.' && last.as_char() == '.' => true,
        [.., TokenTree::Punct(colon), TokenTree::Punct(last)] if colon.as_char() == ':' && last.as_char() == ':' => {
            false
        }
        [.., TokenTree::Punct(last)] if last.as_char() == '$' => name == "crate",
        [.., TokenTree::Punct(last)] => !matches!(last.as_char(), '.' | '\''),
        _ => true,
    }
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let tokens: TokenStream = text.parse().unwrap();
        let shown =
            |path: &MacroPath| format!("{}{}", path.segments.join("::"), if path.calls_macro { "!" } else { "" });
        paths_in(&tokens).iter().map(shown).collect()
    }

    #[test]
    fn paths_are_found_in_groups() {
        assert_eq!(paths("a, (crate::b::C, [super::d(x)])"), ["crate::b::C", "super::d"]);
    }

    #[test]
    fn single_names_are_types_calls_and_macros() {
        assert_eq!(paths("Type, function(1), name!(), variable, a != b"), ["Type", "function", "name!"]);
    }

    #[test]
    fn macro_variables_and_members_are_no_paths() {
        assert_eq!(
            paths("$name(), $crate::a::B, x.method(), x.await, &'a T, 0..Max, ::core::X"),
            ["crate::a::B", "T", "Max"]
        );
    }

    #[test]
    fn definitions_are_no_references() {
        assert_eq!(paths("struct Name(Type); fn name(x: Other) {}"), ["Type", "Other"]);
    }

    #[test]
    fn generic_arguments_end_a_path() {
        assert_eq!(paths("a::b::<c::D>::new()"), ["a::b", "c::D"]);
    }
}
