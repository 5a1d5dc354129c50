//! Paths as lists of segments.

use syn::ext::IdentExt;

/// Stands first in a path that begins with `::`, which names another crate.
pub const OTHER_CRATE: &str = "::";

/// The segments of a path without generic arguments.
pub fn segments_of(path: &syn::Path) -> Vec<String> {
    let start = path.leading_colon.as_ref().map(|_| OTHER_CRATE.to_owned());
    start.into_iter().chain(path.segments.iter().map(|segment| segment.ident.unraw().to_string())).collect()
}

/// Whether a name is written as those of types, constants and variants are.
pub fn is_capitalized(name: &str) -> bool {
    name.trim_start_matches('_').starts_with(char::is_uppercase)
}
