//! The verdicts.

use maud::{Markup, html};

use super::shown::text;
use super::view::View;
use crate::series::expectation::Verdict;

/// A row for each expectation and recording; those that were not met first.
pub fn section(view: &View<'_>) -> Markup {
    let all = view.report.expectations.len();
    let mut verdicts = Vec::new();
    for (run, of) in view.runs().iter().enumerate() {
        for recording in &of.recordings {
            for evaluation in &recording.evaluations {
                verdicts.push((run, &recording.source, evaluation.expectation(), evaluation.verdict()));
            }
        }
    }
    verdicts.sort_by_key(|(.., verdict)| verdict.is_held());
    let not_met = verdicts.iter().filter(|(.., verdict)| !verdict.is_held()).count();
    html! {
        @if all > 0 {
            section {
                h2 { "Expectations" }
                p { @if not_met == 0 { "All were met." } @else { (not_met) " of " (verdicts.len()) " were not met." } }
                div.scroll {
                    table {
                        thead { tr { th { "verdict" } th { "expectation" } th { "run" } th { "recording" } th { "why" } } }
                        tbody {
                            @for (run, source, expectation, verdict) in &verdicts {
                                tr {
                                    td { (badge(verdict)) }
                                    td.expression { code { (text(expectation)) } }
                                    td { (view.run_name(*run)) }
                                    td.path { (text(source)) }
                                    td.why { (text(why(verdict))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn badge(verdict: &Verdict) -> Markup {
    let class = if verdict.is_held() { "good" } else { "bad" };
    html! { span.badge.(class) { (verdict.name()) } }
}

/// The verdict's text without its name.
fn why(verdict: &Verdict) -> String {
    let text = verdict.to_string();
    text.strip_prefix(verdict.name()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text).to_owned()
}
