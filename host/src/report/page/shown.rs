//! Texts of peers on the page.

use std::fmt::Display;

use maud::{Markup, html};

use crate::stats::PeerText;

/// A text of a peer as the page shows it: one line, without characters that hide or reorder others. What HTML would act on
/// is escaped by the template, as in any text.
pub fn text(of_peer: impl Display) -> String {
    PeerText::line(of_peer).to_string()
}

/// A path with places after its dots at which lines may be broken.
pub fn breakable(path: &str) -> Markup {
    let shown = text(path);
    let parts: Vec<&str> = shown.split_inclusive(['.', '_', ':']).collect();
    html! { @for part in parts { (part) wbr; } }
}
