//! What all sections of the page need.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::shown::{breakable, text};
use crate::report::plot::{Frame, MAX_COLUMNS};
use crate::report::runs::{FieldRow, Run, Runs};

/// Points of all lines together, by which the page stays below 5 MiB.
const MAX_POINTS: usize = 300_000;

/// The most plots of a page, whose axes have a size as well.
const MAX_PLOTS: usize = 400;

/// The fewest columns of pixels of a line that can be read.
const MIN_COLUMNS: usize = 24;

/// A report with what is counted once for the whole page.
pub struct View<'r> {
    pub report: &'r Runs,
    pub rows: Vec<FieldRow<'r>>,
    /// The kinds of reasons why there are no stats, in the order of their numbers.
    pub reasons: Vec<&'static str>,
    pub frame: Frame,
    /// The rows of the fields that are plotted.
    pub plots: Vec<usize>,
    /// Whether there were more to plot.
    pub lacks_plots: bool,
}

impl<'r> View<'r> {
    pub fn new(report: &'r Runs) -> Self {
        let kinds: BTreeSet<_> = report.recordings().flat_map(|recording| recording.reasons.keys().copied()).collect();
        let rows = report.rows();
        let recordings = report.recordings().count().max(1);
        let most = MAX_PLOTS.min(MAX_POINTS / (2 * MIN_COLUMNS * recordings));
        let worth_a_plot = (0..).zip(&rows).filter(|(_, row)| !is_idle_counter(report, row)).map(|(at, _)| at);
        let mut plots: Vec<usize> = worth_a_plot.take(most + 1).collect();
        let lacks_plots = plots.len() > most;
        plots.truncate(most);
        let columns = (MAX_POINTS / (2 * plots.len().max(1) * recordings)).clamp(MIN_COLUMNS, MAX_COLUMNS);
        let end_ms = report.recordings().map(|recording| recording.end_ms()).max().unwrap_or(0);
        let frame = Frame { end_ms, runs: report.runs.len(), columns };
        Self { report, rows, reasons: kinds.into_iter().collect(), frame, plots, lacks_plots }
    }

    pub fn runs(&self) -> &'r [Run] {
        &self.report.runs
    }

    pub fn title(&self) -> String {
        let names: Vec<String> = self.runs().iter().map(|run| text(&run.name)).collect();
        format!("Report: {}", names.join(", "))
    }

    /// The colour of a run, and its name.
    pub fn run_name(&self, run: usize) -> Markup {
        let name = self.runs().get(run).map(|run| text(&run.name)).unwrap_or_default();
        html! { span.run { span.swatch.{ "run" (run) } {} span { (name) } } }
    }

    /// A field's path, with places at which it may be broken; a link to its plot, if there is one.
    pub fn field_name(&self, at: usize) -> Markup {
        let Some(row) = self.rows.get(at) else { return html! {} };
        let name = html! { code { (breakable(row.name)) } };
        if self.plots.binary_search(&at).is_ok() {
            html! { a href={ "#f" (row.index) } { (name) } }
        } else {
            name
        }
    }
}

/// Whether a field is one of the kernel's many counters, and never changes.
fn is_idle_counter(report: &Runs, row: &FieldRow<'_>) -> bool {
    let mut numbers =
        report.recordings().filter_map(|recording| recording.column(row.index)).flat_map(|of| of.numbers());
    let first = numbers.next();
    row.name.starts_with("kernel:") && numbers.all(|number| Some(number) == first)
}
