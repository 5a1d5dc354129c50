//! The fields as numbers: what changed, and all of them.

use maud::{Markup, html};

use super::view::View;
use crate::report::comparison::{Comparison, Judgement};
use crate::report::quantity::{compact, decimal, signed};
use crate::report::runs::FieldRow;
use crate::report::summary::Summary;

/// The most fields of the first table.
const MAX_CHANGES: usize = 40;

/// What changed between the runs, the greatest changes first.
pub fn changes(view: &View<'_>) -> Markup {
    let mut changed: Vec<(f64, usize)> = view
        .rows
        .iter()
        .enumerate()
        .filter_map(|(at, row)| Some((row.comparisons.iter().flatten().filter_map(notable).reduce(f64::max)?, at)))
        .collect();
    changed.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let rows: Vec<usize> = changed.iter().map(|(_, at)| *at).take(MAX_CHANGES).collect();
    let is_tested = comparisons(view).any(|of| matches!(of.judgement, Judgement::Changed(_) | Judgement::Noise(_)));
    html! {
        @if view.runs().len() > 1 {
            section {
                h2 { "What changed" }
                p {
                    @match (is_tested, changed.len()) {
                        (true, 0) => "No field changed by more than noise.",
                        (true, count) => { (count) " of " (view.rows.len()) " fields changed by more than noise." },
                        (false, 0) => "There are too few recordings to tell a change from noise.",
                        (false, count) => { "There are too few recordings to tell a change from noise. Of " (count) " fields the spreads lie apart." },
                    }
                    @if changed.len() > rows.len() { " The first " (rows.len()) ":" }
                }
                @if !rows.is_empty() { (table_of(view, &rows)) }
            }
        }
    }
}

fn comparisons<'v>(view: &'v View<'_>) -> impl Iterator<Item = &'v Comparison> {
    view.rows.iter().flat_map(|row| &row.comparisons).flatten()
}

/// How large a change is that is worth a row.
fn notable(comparison: &Comparison) -> Option<f64> {
    match comparison.judgement {
        Judgement::Changed(_) | Judgement::OneRecording { is_apart: Some(true) } => {
            Some(comparison.relative.map_or(f64::INFINITY, f64::abs))
        }
        _ => None,
    }
}

/// All fields.
pub fn table(view: &View<'_>) -> Markup {
    let all: Vec<usize> = (0..view.rows.len()).collect();
    html! {
        section { h2 { "All fields" } (table_of(view, &all)) }
    }
}

fn table_of(view: &View<'_>, rows: &[usize]) -> Markup {
    html! {
        div.scroll {
            table.fields {
                thead {
                    tr {
                        th { "field" }
                        @for (run, _) in view.runs().iter().enumerate() {
                            th.number { (view.run_name(run)) }
                            @if run > 0 { th.number { "change" } th { "more than noise?" } }
                        }
                    }
                }
                tbody {
                    @for (at, row) in rows.iter().filter_map(|at| Some((*at, view.rows.get(*at)?))) {
                        (table_row(view, at, row))
                    }
                }
            }
        }
    }
}

fn table_row(view: &View<'_>, at: usize, row: &FieldRow<'_>) -> Markup {
    html! {
        tr {
            td { (view.field_name(at)) }
            @for (run, of) in row.runs.iter().enumerate() {
                td.number { (value(of.summary())) }
                @if let Some(before) = run.checked_sub(1) {
                    @match row.comparisons.get(before).and_then(Option::as_ref) {
                        Some(comparison) => { td.number { (change(comparison)) } td { (judgement(comparison.judgement)) } },
                        None => { td.number { "\u{2013}" } td {} },
                    }
                }
            }
        }
    }
}

fn value(summary: Option<Summary>) -> Markup {
    html! {
        @match summary {
            None => "\u{2013}",
            Some(of) if of.lower == of.upper => (compact(of.median)),
            Some(of) => { (compact(of.median)) " " span.spread { "(" (compact(of.lower)) " to " (compact(of.upper)) ")" } },
        }
    }
}

fn change(comparison: &Comparison) -> String {
    match comparison.relative {
        _ if comparison.change == 0.0 => "0".into(),
        Some(part) if part.abs() < 10.0 => format!("{}\u{a0}%", signed(&decimal(part * 100.0, 1))),
        _ => signed(&compact(comparison.change)),
    }
}

fn judgement(judgement: Judgement) -> Markup {
    let p = |p: f64| format!("p\u{a0}=\u{a0}{}", decimal(p, if p < 0.1 { 4 } else { 2 }));
    html! {
        @match judgement {
            Judgement::Same => "the same",
            Judgement::Changed(of) => { span.badge.changed { "changed" } " " (p(of)) },
            Judgement::Noise(of) => { "noise " (p(of)) },
            Judgement::TooFew => "too few recordings",
            Judgement::OneRecording { is_apart: Some(true) } => "not tested, spreads apart",
            Judgement::OneRecording { is_apart: Some(false) } => "not tested, spreads overlap",
            Judgement::OneRecording { is_apart: None } => "not tested, one recording",
        }
    }
}
