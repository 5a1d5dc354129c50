//! What was recorded, what to know about it, and how it is judged.

use maud::{Markup, html};

use super::shown::text;
use super::view::View;
use crate::report::comparison::LEVEL;
use crate::report::quantity::{decimal, time};
use crate::report::recording::Recording;

/// The runs in one line.
pub fn summary(view: &View<'_>) -> Markup {
    let recordings = view.report.recordings().count();
    let samples: usize = view.report.recordings().map(|recording| recording.times.len()).sum();
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    html! {
        p.summary {
            (count(view.runs().len(), "run")) ", " (count(recordings, "recording")) ", " (count(samples, "sample")) ", "
            (count(view.rows.len(), "field"))
        }
    }
}

/// What a reader should know before trusting the page.
pub fn notes(view: &View<'_>) -> Markup {
    let notes = view.report.notes();
    html! {
        @if !notes.is_empty() {
            section.notes { ul { @for note in &notes { li { (text(note)) } } } }
        }
    }
}

/// A row for each recording.
pub fn recordings(view: &View<'_>) -> Markup {
    html! {
        section {
            h2 { "Recordings" }
            div.scroll {
                table {
                    thead { tr { th { "run" } th { "recording" } th.number { "samples" } th.number { "length" } th { "without stats" } th.number { "new sessions" } } }
                    tbody {
                        @for (run, of) in view.runs().iter().enumerate() {
                            @for recording in &of.recordings {
                                tr {
                                    td { (view.run_name(run)) }
                                    td.path { (text(&recording.source)) }
                                    td.number { (recording.times.len()) }
                                    td.number { (time(recording.end_ms())) }
                                    td { (holes(view, recording)) }
                                    td.number { (recording.baselines.len()) }
                                }
                            }
                        }
                    }
                }
            }
            (reasons(view))
        }
    }
}

/// How many samples have no stats, by the numbers of their reasons.
fn holes(view: &View<'_>, recording: &Recording) -> Markup {
    html! {
        @if recording.reasons.is_empty() { "none" }
        @for (number, kind) in (1..).zip(&view.reasons) {
            @if let Some(reason) = recording.reasons.get(kind) {
                span.count { span.mark { (number) } " " (reason.count) } " "
            }
        }
    }
}

/// Each kind of reason, with the text of the first sample that has it.
fn reasons(view: &View<'_>) -> Markup {
    let first = |kind: &&'static str| {
        view.report.recordings().find_map(|recording| Some((recording, recording.reasons.get(kind)?)))
    };
    html! {
        ul.plain {
            @for (number, kind) in (1..).zip(&view.reasons) {
                @if let Some((recording, reason)) = first(kind) {
                    li {
                        span.mark { (number) } " " code { (kind) } ": " (text(&reason.text))
                        " " span.path { "(first in " (text(&recording.source)) " at " (time(reason.first_ms)) ")" }
                    }
                }
            }
        }
    }
}

/// How numbers are compared, and what that cannot say.
pub fn method(view: &View<'_>) -> Markup {
    let percent = decimal(LEVEL * 100.0, 1);
    let expected = decimal((LEVEL * f64::from(u32::try_from(view.rows.len()).unwrap_or(u32::MAX))).ceil(), 0);
    html! {
        section.method {
            h2 { "How to read it" }
            h3 { "Values" }
            p { "A recording's value of a field is the median of its samples. The spread in parentheses is that of the middle half of the samples where a run has one recording, and from the least to the greatest recording's median where it has several. A counter that grows without end has a median as well, which says little: record it for the same time in each run." }
            h3 { "Change" }
            p { "The change is the median of the differences of each pair of recordings, one of each run (Hodges and Lehmann)." }
            h3 { "More than noise" }
            p { "With several recordings of each run, their medians are compared by the exact Mann\u{2013}Whitney test: of all ways to deal them to the two runs, p is the part that separates them at least as much. A change is called more than noise if p is below " (percent) " %. That takes at least four recordings of each run, or three and five, taken independently: boot anew for each, and take the runs in turns." }
            p { "Each field is tested by itself. Of these " (view.rows.len()) " fields, about " (expected) " would be called changed in every run even if nothing had changed: one changed field among many is a place to look at, not a proof." }
            p { "The samples of one recording depend on each other: a test over them would find changes where there are none. With one recording on a side nothing is tested; the page only says whether the middle halves of both runs' samples lie apart." }
            h3 { "Plots" }
            p { "All recordings begin at time 0. Where there are more samples than pixels, the least and the greatest of each column of pixels are drawn. No line crosses a sample without a value, or a new session, at which a scheduler counts its deltas anew." }
        }
    }
}
