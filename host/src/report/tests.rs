//! Whole pages.

use std::io;
use std::iter;

use serde_json::{Value, json};

use super::*;
use crate::MissingStatsReason;
use crate::sample::Sample;
use crate::series::MAX_LINE_BYTES;

fn line(at: u64, stats: &Result<Value, MissingStatsReason>) -> String {
    let sample = json!({ "tag": "t", "elapsed_ms": at, "session": 1, "interval_ms": 1000, "stats": stats });
    format!("{sample}\n")
}

/// A recording in which the field `nr` has these values, one a second.
fn recording(values: &[f64]) -> String {
    (0..).zip(values).map(|(at, value)| line(at * 1_000, &Ok(json!({ "nr": value })))).collect()
}

fn report(runs: &[(&str, &str)]) -> Report {
    let mut report = Report::new(Vec::new());
    for (at, (run, text)) in runs.iter().enumerate() {
        report.read(run, &format!("{at}.jsonl"), text.as_bytes()).unwrap();
    }
    report
}

/// The text of all cells of the page's tables that have this field's name in the first.
fn cells(page: &str, field: &str) -> Vec<String> {
    let plain = |cell: &str| {
        let mut text = String::new();
        let mut in_tag = true;
        for char in cell.chars() {
            match char {
                '<' => in_tag = true,
                '>' => in_tag = false,
                other if !in_tag => text.push(other),
                _ => {}
            }
        }
        text.replace('\u{a0}', " ")
    };
    let rows = page.split("<tr>").map(|row| {
        let cells = row.split("</tr>").next().unwrap_or_default().split("<td").skip(1);
        cells.map(plain).collect::<Vec<_>>()
    });
    rows.filter(|cells| cells.first().is_some_and(|first| first == field)).last().unwrap_or_default()
}

#[test]
fn runs_whose_samples_span_other_times_have_a_note() {
    let each = |ms: u64| recording(&[1.0; 5]).replace("\"interval_ms\":1000", &format!("\"interval_ms\":{ms}"));
    let notes = |ms| report(&[("old", &each(1000)), ("new", &each(ms))]).notes();
    assert_eq!(
        notes(500),
        [
            "a sample of run old spans 1000 ms, one of run new 500 ms: fields that count since the last read differ for that alone"
        ]
    );
    assert!(notes(1001).is_empty() && notes(1199).is_empty());
    assert_eq!(notes(0).len(), 1);
}

#[test]
fn repetitions_of_two_runs_are_tested() {
    let of = |value: f64| recording(&[value, value + 1.0, value + 2.0]);
    let texts: Vec<String> = (0..8_u8).map(|at| of(f64::from(at) + if at < 4 { 0.0 } else { 100.0 })).collect();
    let runs = texts.iter().enumerate().map(|(at, text)| (if at < 4 { "old" } else { "new" }, text.as_str()));
    let page = report(&runs.collect::<Vec<_>>()).to_html();
    assert_eq!(
        cells(&page, "nr"),
        ["nr", "2.5 (1 to 4)", "106.5 (105 to 108)", "+104", "changed p = 0.0286"].map(str::to_owned)
    );
    assert!(page.contains("1 of 1 fields changed by more than noise."), "{page}");
}

#[test]
fn one_recording_a_side_is_not_tested() {
    let page = report(&[("old", &recording(&[1.0, 2.0])), ("new", &recording(&[1.5, 2.5]))]).to_html();
    assert_eq!(cells(&page, "nr")[3..], ["+33.3 %", "not tested, spreads overlap"]);
    assert!(page.contains("There are too few recordings to tell a change from noise."), "{page}");
    let page = report(&[("old", &recording(&[1.0, 2.0])), ("new", &recording(&[11.0, 12.0]))]).to_html();
    assert!(page.contains("Of 1 fields the spreads lie apart."), "{page}");
}

#[test]
fn holes_and_baselines_are_marked() {
    let hole = |at| line(at, &Err(MissingStatsReason::TimedOut { after_ms: 5 }));
    let stats = Ok(json!({ "nr": 1 }));
    let mut text = line(0, &stats) + &hole(1_000) + &hole(2_000) + &line(3_000, &stats);
    text += &line(4_000, &stats).replace(r#""session":1"#, r#""session":2"#);
    let page = report(&[("only", &text)]).to_html();
    for expected in [
        "</span> 2</span>",
        "<code>timed_out</code>: no answer within 5 ms",
        "(first in 0.jsonl at 1\u{a0}s)",
        "no stats: <code>timed_out</code>",
        "a new session",
        "<polygon",
        "<use href=\"#marks\">",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(!page.contains("What changed"));
}

#[test]
fn the_kernel_and_verdicts_are_on_the_page() {
    let mut sample = Sample::new("a", Ok(json!({ "nr": 3 })));
    let said = json!({
        "state": "enabled", "ops": "simple", "enable_seq": "1", "uptime_us": 1, "events": { "SCX_EV_A": "12" },
        "log": [{ "time_us": 1_500_000, "text": "sched_ext: enabled" }],
    });
    sample.kernel = Some(Ok(serde_json::from_value(said).unwrap()));
    let text = serde_json::to_string(&sample).unwrap() + "\n";
    let expectations = ["nr <= 2", "kernel:state = enabled"].map(|text| text.parse().unwrap());
    let mut report = Report::new(expectations.to_vec());
    report.read("run", "r.jsonl", text.as_bytes()).unwrap();
    let page = report.to_html();
    for expected in [
        "1 of 2 were not met.",
        "<span class=\"badge bad\">broken</span>",
        "is 3, not &lt;= 2",
        "<span class=\"badge good\">held</span>",
        "1.5\u{a0}s</span> sched_ext: enabled",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert_eq!(cells(&page, "SCX_EV_A"), ["SCX_EV_A", "12"]);
    let [verdicts] = report.verdicts().try_into().unwrap();
    assert_eq!((verdicts.source.as_str(), verdicts.verdicts[0].1.is_held()), ("r.jsonl", false));
}

/// What a peer can write into a recording: markup, quotes, control characters and what reorders text.
const HOSTILE: &str = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'`&lt;\u{1b}[2J\0\u{202e}\u{2066}\u{9b}]]>--><!--";

#[test]
fn no_text_of_a_peer_becomes_markup() {
    let stats: Result<Value, MissingStatsReason> = Ok(json!({ HOSTILE: 1, "a": { HOSTILE: [1] } }));
    let mut sample: Sample = serde_json::from_str(line(5, &stats).trim()).unwrap();
    let said = json!({
        "state": HOSTILE, "ops": HOSTILE, "enable_seq": "1", "uptime_us": 1, "events": { HOSTILE: "1" },
        "log": [{ "time_us": 1, "text": HOSTILE }],
    });
    sample.kernel = Some(Ok(serde_json::from_value(said).unwrap()));
    let mut text = serde_json::to_string(&sample).unwrap() + "\n";
    text += &line(6, &Err(MissingStatsReason::NoScheduler { reason: HOSTILE.into() }));
    text += &format!("{{\"tag\":5,{HOSTILE}\n");
    let mut report = Report::new(vec![format!("kernel:state = {}", json!(HOSTILE)).parse().unwrap()]);
    report.read(HOSTILE, HOSTILE, text.as_bytes()).unwrap();
    let page = report.to_html();
    for tag in ["<script", "<img", "<!--"] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert_eq!(page.matches("</title>").count() - page.matches("<title>").count(), 0);
    assert_eq!(page.matches("</style>").count(), 1);
    assert!(page.contains("&lt;script&gt;alert(1)"));
    let hidden = |char: char| crate::stats::is_hidden(char) && char != '\n';
    assert_eq!(page.chars().find(|char| hidden(*char)), None);
    // Nothing in an attribute ends it.
    assert!(!page.contains("onerror=alert(1)>"));
}

#[test]
fn nothing_is_loaded() {
    let page = report(&[("only", &recording(&[1.0, 2.0]))]).to_html();
    for loads in ["http:", "https:", "url(", "@import", "<script", "<link rel=\"stylesheet", "src="] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert!(page.contains("default-src 'none'"));
}

/// scx_layered's shape: samples of 240 fields, some of them deep.
fn layered(samples: u64) -> String {
    let number = |at: u64, field: u64| at.wrapping_mul(2_654_435_761).wrapping_add(field * 40_503) % 100_000;
    let of = |at| {
        let layer = |layer: u64| {
            let fields = (0..29).map(|field| (format!("some_field_{field}"), json!(number(at, layer * 29 + field))));
            (format!("layer-{layer}"), Value::Object(fields.collect()))
        };
        let top = (0..8).map(|field| (format!("top_{field}"), json!(number(at, 900 + field) as f64 / 7.0)));
        let layers = Value::Object((0..8).map(layer).collect());
        let all: serde_json::Map<String, Value> = top.chain(iter::once(("layers".to_owned(), layers))).collect();
        line(at * 100, &Ok(Value::Object(all)))
    };
    (0..samples).map(of).collect()
}

#[test]
fn a_long_recording_stays_small() {
    let short = report(&[("run", &layered(1_000))]).to_html();
    let long = report(&[("run", &layered(10_000))]);
    assert!(long.to_html().contains(", 240 fields"));
    let long = long.to_html();
    assert!(long.len() < 5 << 20, "{} bytes", long.len());
    // The plots have pixels, not samples.
    assert!(long.len() < short.len() + short.len() / 5, "{} after {}", long.len(), short.len());
}

#[test]
fn many_recordings_stay_small() {
    let text = layered(300);
    let runs: Vec<String> = (0..MAX_RECORDINGS).map(|at| format!("run {}", at % MAX_RUNS)).collect();
    let runs: Vec<(&str, &str)> = runs.iter().map(|run| (run.as_str(), text.as_str())).collect();
    let mut report = report(&runs);
    let page = report.to_html();
    assert!(page.len() < 5 << 20, "{} bytes", page.len());
    assert!(page.contains("Plotted are the first"));
    let error = report.read("run 1", "x", text.as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "a page has at most 64 recordings");
}

/// A recording that counts how often its bytes are read.
struct Counting<'t> {
    text: &'t [u8],
    read: &'t mut usize,
}

impl io::Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.text.read(buffer)?;
        *self.read += read;
        Ok(read)
    }
}

#[test]
fn a_recording_is_read_once() {
    let (text, mut read) = (layered(50), 0);
    let from = io::BufReader::new(Counting { text: text.as_bytes(), read: &mut read });
    Report::new(Vec::new()).read("run", "r", from).unwrap();
    assert_eq!(read, text.len());
}

#[test]
fn what_is_no_recording_says_why() {
    let read =
        |text: &str| Report::new(Vec::new()).read("run", "r", text.as_bytes()).map_err(|error| error.to_string());
    assert_eq!(read("").unwrap_err(), "it is empty: there is no sample");
    let error = read("<html>\n</html>\n").unwrap_err();
    assert_eq!(error, "line 1 is no sample: expected value at line 1 column 1 (and none of its 2 lines is)");
    let huge = "x".repeat(MAX_LINE_BYTES + 5) + "\n" + &recording(&[1.0]);
    let mut report = Report::new(Vec::new());
    report.read("run", "r", huge.as_bytes()).unwrap();
    assert_eq!(report.notes(), [format!("r: line 1 is no sample: it has more than {MAX_LINE_BYTES} bytes")]);
    let error = (0..=MAX_RUNS).find_map(|at| report.read(&format!("{at}"), "r", recording(&[1.0]).as_bytes()).err());
    assert_eq!(error.unwrap().to_string(), "a page has at most 8 runs");
}

#[test]
fn notes_say_what_is_odd() {
    let old = recording(&[1.0, 2.0]) + &line(500, &Ok(json!({ "nr": 1, "more": 2, "most": 3 }))) + "{}\n{}\n";
    let report = report(&[("old", &old), ("new", &recording(&[1.0]))]);
    let problem = "is before the one before it; is this a recording of several guests, or several in one file?";
    let expected = [
        "0.jsonl: line 4 is no sample: missing field `tag` at line 1 column 2; so are 1 more lines".to_owned(),
        format!("0.jsonl: sample 3 at 0.5\u{a0}s {problem}"),
        "run new has no more and 1 more fields, which other runs have".to_owned(),
    ];
    assert_eq!(report.notes(), expected);
    assert!(report.to_html().contains("which other runs have"));
}
