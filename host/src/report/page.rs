//! The page.

mod expectations;
mod fields;
mod kernel;
mod overview;
mod plots;
mod shown;
mod view;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::runs::Runs;
use view::View;

const STYLE: &str = include_str!("page/style.css");

/// What the page may load and run: nothing but its own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// Returns the page about runs.
pub fn page(runs: &Runs) -> Markup {
    let view = View::new(runs);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content={ "scx-vsock " (env!("CARGO_PKG_VERSION")) };
                link rel="icon" href="data:,";
                title { (view.title()) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (view.title()) } (overview::summary(&view)) }
                main {
                    (overview::notes(&view))
                    (overview::recordings(&view))
                    (expectations::section(&view))
                    (fields::changes(&view))
                    (plots::section(&view))
                    (fields::table(&view))
                    (kernel::section(&view))
                    (overview::method(&view))
                }
            }
        }
    }
}
