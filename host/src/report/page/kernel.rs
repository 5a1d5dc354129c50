//! What the guests' kernels said.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::shown::{breakable, text};
use super::view::View;
use crate::report::kernel_record::KernelRecord;
use crate::report::quantity::decimal;

/// The kernel's counters and messages of each recording.
pub fn section(view: &View<'_>) -> Markup {
    let mut records = Vec::new();
    for (run, of) in view.runs().iter().enumerate() {
        let with_kernel = of.recordings.iter().filter_map(|recording| Some((recording, recording.kernel.as_ref()?)));
        records.extend(with_kernel.map(|(recording, kernel)| (run, recording.source.as_str(), kernel)));
    }
    html! {
        @if !records.is_empty() {
            section {
                h2 { "Kernel" }
                (counters(view, &records))
                @for (run, source, kernel) in &records { (messages(view, *run, source, kernel)) }
            }
        }
    }
}

/// A row for each counter, a column for each recording.
fn counters(view: &View<'_>, records: &[(usize, &str, &KernelRecord)]) -> Markup {
    let totals: Vec<_> = records.iter().map(|(.., kernel)| kernel.totals()).collect();
    let names: BTreeSet<&String> = totals.iter().flat_map(|of| of.keys()).collect();
    html! {
        div.scroll {
            table {
                thead { tr { th { "at the end" } @for (run, source, _) in records { th.number { (view.run_name(*run)) br; span.path { (text(source)) } } } } }
                tbody {
                    tr { td { "state" } @for (.., kernel) in records { td.number { (text(kernel.state.as_deref().unwrap_or("no sched_ext"))) } } }
                    tr { td { "scheduler" } @for (.., kernel) in records { td.number.path { (text(kernel.ops.as_deref().unwrap_or("none"))) } } }
                    tr { td { "schedulers enabled" } @for (.., kernel) in records { td.number { (kernel.enables) } } }
                    @for name in names {
                        tr { td { code { (breakable(name)) } } @for of in &totals { td.number { @if let Some(count) = of.get(name) { (count) } @else { "\u{2013}" } } } }
                    }
                }
            }
        }
    }
}

fn messages(view: &View<'_>, run: usize, source: &str, kernel: &KernelRecord) -> Markup {
    html! {
        @if !kernel.messages.is_empty() {
            h3 { (view.run_name(run)) " " span.path { (text(source)) } }
            @if kernel.is_truncated { p { "The newest " (kernel.messages.len()) " messages:" } }
            ul.log {
                @for (time, message) in &kernel.messages {
                    li { @if let Some(time) = time { span.when { (seconds(*time)) } " " } (text(message)) }
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
fn seconds(us: u64) -> String {
    format!("{}\u{a0}s", decimal(us as f64 / 1e6, 3))
}
