//! A plot for each field.

use maud::{Markup, PreEscaped, html};

use super::shown::{breakable, text};
use super::view::View;
use crate::report::marks::Lane;
use crate::report::polyline::lines;
use crate::report::runs::FieldRow;

/// The plots, and what their colours and marks mean.
pub fn section(view: &View<'_>) -> Markup {
    let (width, height) = view.frame.size();
    let lane = |run: &crate::report::runs::Run| {
        Lane::of(&run.recordings, &view.reasons, view.frame.end_ms, view.frame.columns)
    };
    let lanes: Vec<Lane> = view.runs().iter().map(lane).collect();
    html! {
        section {
            h2 { "Plots" }
            (legend(view))
            @if view.lacks_plots {
                p { "Plotted are the first " (view.plots.len()) " of " (view.rows.len()) " fields; the table below has all." }
            }
            svg.shared width="0" height="0" viewBox={ "0 0 " (width) " " (height) } aria-hidden="true" {
                defs { g id="marks" { (PreEscaped(view.frame.marks(&lanes))) } }
            }
            div.plots {
                @for row in view.plots.iter().filter_map(|at| view.rows.get(*at)) { (plot(view, row)) }
            }
        }
    }
}

fn plot(view: &View<'_>, row: &FieldRow<'_>) -> Markup {
    let (width, height) = view.frame.size();
    let mut drawn = Vec::new();
    for (run, of) in view.runs().iter().enumerate() {
        let columns = of.recordings.iter().filter_map(|recording| Some((recording, recording.column(row.index)?)));
        drawn.extend(
            columns.map(|(recording, column)| (run, lines(recording, column, view.frame.end_ms, view.frame.columns))),
        );
    }
    html! {
        figure id={ "f" (row.index) } {
            figcaption { code { (breakable(row.name)) } }
            svg viewBox={ "0 0 " (width) " " (height) } role="img" {
                title { (text(row.name)) }
                (PreEscaped(view.frame.plot(&drawn)))
                use href="#marks" {}
            }
        }
    }
}

fn legend(view: &View<'_>) -> Markup {
    let has_baselines = view.report.recordings().any(|recording| !recording.baselines.is_empty());
    html! {
        ul.legend {
            @for (run, _) in view.runs().iter().enumerate() { li { (view.run_name(run)) } }
            @for (number, kind) in (1..).zip(&view.reasons) {
                li { span.mark { (number) } " no stats: " code { (kind) } }
            }
            @if has_baselines { li { span.triangle { "\u{25bc}" } " a new session" } }
        }
    }
}
