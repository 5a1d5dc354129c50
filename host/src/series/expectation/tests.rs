use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Number, Value, json};

use super::*;
use crate::Sample;
use crate::series::SampleSeries;
use crate::stats::{MissingStatsReason, SchedExt};

/// A run of nine seconds as `boot --jsonl` prints it, with a hole and what the kernel says: scx_bpfland, and at the end a
/// scheduler that took its place.
const RECORDED: &str = include_str!("recorded.jsonl");

fn recorded() -> SampleSeries {
    SampleSeries::from_json_lines(RECORDED).unwrap()
}

fn parsed(text: &str) -> Expectation {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

fn verdict(text: &str) -> String {
    recorded().check(&parsed(text)).to_string()
}

/// What holds, what breaks, and a part of why.
const KINDS: &[(&str, &str, &str)] = &[
    (
        "nr_running <= 64",
        "nr_running <= 2",
        r#"sample 4 ("sample 4") at 4.003 s is 5, not <= 2; before it 2; after it none (the guest was"#,
    ),
    ("nr_running < 6", "nr_running < 5", "is 5, not < 5"),
    ("nr_running >= 1", "nr_running >= 2", "sample 1"),
    ("nr_running > 0", "nr_running > 1", "is 1, not > 1; after it 2"),
    ("nr_cpus = 2", "nr_cpus = 3", "is 2, not = 3"),
    ("nr_cpus != 3", "nr_cpus != 2", "is 2, not != 2"),
    ("name = bpfland", "name = \"rusty\"", r#"is "bpfland", not = rusty"#),
    ("is_partial = false", "is_partial = true", "is false, not = true"),
    (
        "eventually nr_direct_dispatches > 0 within 5s",
        "eventually nr_direct_dispatches > 9000 within 5s",
        r#"sample 4 ("sample 4") at 4.003 s is 4005, not > 9000, nor was any before it"#,
    ),
    ("at_end nr_running = 3", "at_end nr_running = 5", "sample 9"),
    ("per_second(nr_direct_dispatches) > 100 after 2s", "per_second(nr_direct_dispatches) > 2000 after 2s", "sample 2"),
    ("rate(totals.ctxt) > 10", "rate(totals.ctxt) > 1000", r#"is 1000.0, not > 1000"#),
    (
        "nondecreasing totals.ctxt",
        "nondecreasing nr_running",
        r#"sample 6 ("sample 6") at 6.000 s is 4, not at least 5, as before; before it none (the guest was"#,
    ),
    ("steady(load) within 20% after 2s", "steady(load) within 20%", "sample 1"),
    (
        "holes(stats) <= 2",
        "holes(stats) = 0",
        r#"sample 5 ("sample 5") at 5.000 s is 1, not = 0; before it 0; after it 1"#,
    ),
    ("holes(kernel) <= 1", "holes(kernel) < 1", "is 1, not < 1"),
    ("kernel:state = enabled", "kernel:state != enabled", r#"is "enabled", not != enabled"#),
    (
        "kernel:events.SCX_EV_SELECT_CPU_FALLBACK <= 10",
        "kernel:events.SCX_EV_SELECT_CPU_FALLBACK <= 3",
        "is 4, not <= 3",
    ),
    (
        "rate(kernel:events.SCX_EV_SELECT_CPU_FALLBACK) <= 1.5",
        "rate(kernel:events.SCX_EV_SELECT_CPU_FALLBACK) < 1",
        "sample 2",
    ),
    (
        "nondecreasing kernel:events.SCX_EV_SELECT_CPU_FALLBACK",
        "nondecreasing kernel:nr_rejected",
        "is 0, not at least 1",
    ),
    ("kernel:switch_all = 1", "kernel:enable_seq = 1", "sample 9"),
];

#[test]
fn each_kind_holds_and_breaks() {
    for (holds, breaks, why) in KINDS {
        let held = verdict(holds);
        assert!(held.starts_with("held: "), "{holds}: {held}");
        let broken = verdict(breaks);
        assert!(broken.starts_with("broken: sample ") && broken.contains(why), "{breaks}: {broken}");
    }
}

#[test]
fn a_series_without_values_is_no_data() {
    for (text, why) in [
        ("nr_runing <= 64", "no data: there is no nr_runing; the nearest is nr_running (9 samples)"),
        ("totals.ctx > 1", "no data: there is no totals.ctx; the nearest is totals.ctxt (9 samples)"),
        ("zzz > 1", "no data: there is no zzz (9 samples)"),
        ("kernel:stat = enabled", "no data: there is no kernel:stat; the nearest is kernel:state (9 samples)"),
        ("name > 1", "no data: name is a string, not a number (9 samples)"),
        ("nr_running = many", "no data: nr_running is a number, not a string (9 samples)"),
        ("holes(stats) != no", "no data: holes(stats) is a number, not a string (9 samples)"),
        ("rate(nr_running) != no", "no data: rate(nr_running) is a number, not a string (9 samples)"),
        ("totals > 1", "no data: totals is an object, not a number (9 samples)"),
        ("nr_running <= 64 after 1m", "no data: there is no sample"),
        (
            "nr_running <= 64 after 4900ms within 5100ms",
            "no data: the guest was being frozen, and a frozen guest cannot answer (1 sample)",
        ),
        ("steady(load) within 20% after 9s", "no data: there are no two values to compare (1 sample)"),
        ("nondecreasing load after 9s", "no data: there are no two values to compare (1 sample)"),
        ("rate(totals.ctxt) > 1 after 9s", "no data: its baseline is new (1 sample)"),
        ("per_second(totals.ctxt) > 1 within 1500ms", "no data: its baseline is new (1 sample)"),
        (
            "at_end nr_running > 0 within 5s",
            "no data: the guest was being frozen, and a frozen guest cannot answer (5 samples)",
        ),
    ] {
        assert_eq!(verdict(text), why, "{text}");
    }
    let without_kernel: SampleSeries = [Sample::new("a", Ok(json!({ "nr": 1 })))].into_iter().collect();
    for text in ["kernel:state = enabled", "holes(kernel) <= 5", "rate(kernel:nr_rejected) < 1"] {
        let verdict = without_kernel.check(&parsed(text)).to_string();
        assert_eq!(verdict, "no data: what the kernel says was not sampled (1 sample)");
    }
}

#[test]
fn integers_are_exact() {
    let (big, bigger) = (9_007_199_254_740_992_u64, 9_007_199_254_740_993_u64);
    let at = |elapsed_ms, nr: u64| Sample { elapsed_ms, ..Sample::new("t", Ok(json!({ "nr": nr }))) };
    let series: SampleSeries = [at(1_000, bigger), at(2_000, big)].into_iter().collect();
    let holds = |text: &str| series.check(&parsed(text)).is_held();
    assert!(holds("nr >= 9007199254740992") && !holds("nr <= 9007199254740992") && holds("nr <= 9007199254740993"));
    assert!(holds("nr != 9007199254740994") && holds("nr > 4503599627370495.5"));
    assert!(!holds("nondecreasing nr") && holds("rate(nr) = -1"));
    let most: SampleSeries = [at(1, u64::MAX)].into_iter().collect();
    assert!(most.check(&parsed("nr = 18446744073709551615")).is_held());
    assert!(!most.check(&parsed("nr < 18446744073709551615")).is_held());
}

#[test]
fn counters_begin_anew_with_their_baseline() {
    let at = |session, nr: u64| Sample { session, elapsed_ms: nr, ..Sample::new("t", Ok(json!({ "nr": nr }))) };
    let series: SampleSeries = [at(1, 500), at(2, 3), at(2, 4)].into_iter().collect();
    assert_eq!(series.check(&parsed("nondecreasing nr")).to_string(), "held: 3 values");
    assert_eq!(series.check(&parsed("rate(nr) >= 0")).to_string(), "held: 1 value; 2 without");
}

#[test]
fn the_value_of_another_type_does_not_count() {
    let series: SampleSeries = [json!(1), json!(null), json!("x"), json!([1]), json!(2)]
        .map(|nr| Sample::new("t", Ok(json!({ "nr": nr }))))
        .into_iter()
        .collect();
    assert_eq!(series.check(&parsed("nr > 0")).to_string(), "held: 2 values; 3 without");
}

#[test]
fn what_is_kept_of_a_sample_is_bounded() {
    let long = "x".repeat(1 << 20);
    let reason = MissingStatsReason::NoScheduler { reason: long.clone() };
    let mut evaluation = Evaluation::new(parsed("name != no"));
    evaluation.record(&Sample::new(&long, Ok(json!({ "name": long }))));
    evaluation.record(&Sample::new(&long, Err(reason)));
    assert!(evaluation.verdict().is_held());
    let Verdict::Broken(broken) = SampleSeries::from_iter([
        Sample::new(&long, Ok(json!({ "name": long }))),
        Sample::new(&long, Err(MissingStatsReason::NoScheduler { reason: long.clone() })),
    ])
    .check(&parsed("name = no")) else {
        panic!("held")
    };
    assert!(format!("{broken:?}").len() < 4_000);
}

#[test]
fn canonical_texts_are_as_written() {
    for text in [
        "nr_running <= 64",
        "eventually nr_direct_dispatches > 0 within 5s",
        "at_end layers.0.util >= 0.5",
        "per_second(nr_direct_dispatches) > 100 after 2s",
        "rate(totals.ctxt) > 10",
        "nondecreasing totals.ctxt",
        "steady(load) within 20% after 2s",
        "steady(rate(x)) within 0.5% after 1500ms within 60s",
        "holes(stats) <= 2",
        "holes(kernel) = 0",
        "kernel:state = enabled",
        "kernel:events.SCX_EV_SELECT_CPU_FALLBACK <= 10",
        r#""always" != "true""#,
        r#""kernel:x" = "5""#,
        r#"kernel:"a b" = """#,
        r#""cgroups.a\\.b (c)" < 0.5"#,
        r"sys\.slice.a\\b < -1.5",
        "per_second > 1",
        "steady = within",
    ] {
        assert_eq!(parsed(text).to_string(), text);
    }
    for (text, canonical) in [
        ("  always nr==5  ", "nr = 5"),
        ("nr<=5", "nr <= 5"),
        ("rate( kernel:nr_rejected )<1 within 1m after 0.5s", "rate(kernel:nr_rejected) < 1 after 500ms within 60s"),
        ("steady ( \"a\" ) within 5 %", "steady(a) within 5%"),
        ("nr > 1 after 1.5m", "nr > 1 after 90s"),
    ] {
        assert_eq!(parsed(text).to_string(), canonical);
    }
}

#[test]
fn errors_point_at_the_place() {
    for (text, error) in [
        ("", r"column 1: expected a path, such as nr_running or kernel:state, but found the end"),
        ("nr_running", "column 11: expected a comparison: <, <=, >, >=, = or !=, but found the end"),
        ("nr_running <=", "column 14: expected a number, such as 64 or 0.5, but found the end"),
        ("nr_running <= 6x4", r#"column 15: expected a number, such as 64 or 0.5, but found "6x4""#),
        ("nr_running < enabled", r#"column 14: expected a number, such as 64 or 0.5, but found "enabled""#),
        ("nr_running < 1e400", r#"column 14: expected a number, such as 64 or 0.5, but found "1e400""#),
        ("nr < 1 until 2s", r#"column 8: expected after TIME, within TIME or the end, but found "until""#),
        ("nr < 1 after", "column 13: expected a time, such as 250ms, 2s or 1m, but found the end"),
        ("nr < 1 after 2", "column 15: expected a time, such as 250ms, 2s or 1m, but found the end"),
        ("nr < 1 after 1.2.3s", "column 14: expected a time, such as 250ms, 2s or 1m, but found \"1.2.3s\""),
        ("nr < 1 after 99999999m", "column 14: expected a time, such as 250ms, 2s or 1m, but found \"99999999m\""),
        (
            "nr < 1 after 5s within 2s",
            "column 8: expected a time within that is not before the time after, but found \"after\"",
        ),
        ("nr < 1 after 5s after 6s", "column 17: expected after TIME, within TIME or the end, but found \"after\""),
        ("a..b > 1", r#"column 1: "a..b" is no path: an empty component at byte 2"#),
        (r#"rate("a.") > 1"#, r#"column 6: "a." is no path: an empty component at byte 2"#),
        ("rate(x > 1", r#"column 8: expected a closing parenthesis, but found ">""#),
        ("holes(cpus) > 1", r#"column 7: expected stats or kernel, but found "cpus)""#),
        ("steady(x)", "column 10: expected within PERCENT%, such as within 20%, but found the end"),
        ("steady(x) within 20", "column 20: expected a percent sign, but found the end"),
        ("steady(x) within -1%", "column 18: expected a percentage, such as 20%, but found \"-1%\""),
        ("always > 5", r#"column 8: expected a path, such as nr_running or kernel:state, but found ">""#),
        ("name = \"x", "column 10: expected a text that ends with a quote, but found the end"),
        ("\u{e4}\u{e4} ? 5", r#"column 4: expected a comparison: <, <=, >, >=, = or !=, but found "?""#),
    ] {
        assert_eq!(text.parse::<Expectation>().unwrap_err().to_string(), error, "{text}");
    }
    let long = "x".repeat(MAX_EXPECTATION_BYTES + 1);
    let error = long.parse::<Expectation>().unwrap_err().to_string();
    assert_eq!(error, "column 1025: an expectation has at most 1024 bytes");
}

#[test]
fn the_alternate_form_has_a_caret() {
    let error = "\u{e4}b <= x".parse::<Expectation>().unwrap_err();
    assert!(format!("{error:#}").ends_with("\n  \u{e4}b <= x\n        ^"), "{error:#}");
    let hidden = "a \u{202e}".parse::<Expectation>().unwrap_err();
    assert!(format!("{hidden:#}").ends_with("\n  a \u{fffd}\n    ^"), "{hidden:#}");
}

fn any_number() -> impl Strategy<Value = Number> {
    prop_oneof![
        any::<u64>().prop_map(Number::from),
        any::<i64>().prop_map(Number::from),
        (-100_i64..100).prop_map(Number::from),
        any::<f64>().prop_filter_map("finite", Number::from_f64),
    ]
}

fn any_operand() -> impl Strategy<Value = Operand> {
    prop_oneof![
        any_number().prop_map(Operand::Number),
        any::<bool>().prop_map(Operand::Boolean),
        ".{0,8}".prop_map(Operand::Text),
        "[a-z0-9.]{0,8}".prop_map(Operand::Text),
    ]
}

fn any_test() -> impl Strategy<Value = Test> {
    prop_oneof![
        any_number().prop_map(Test::Less),
        any_number().prop_map(Test::AtMost),
        any_number().prop_map(Test::Greater),
        any_number().prop_map(Test::AtLeast),
        any_operand().prop_map(Test::Equals),
        any_operand().prop_map(Test::Differs),
    ]
}

fn any_source() -> impl Strategy<Value = Source> {
    prop_oneof![Just(Source::Stats), Just(Source::Kernel)]
}

fn any_term() -> impl Strategy<Value = Term> {
    let name = prop_oneof!["[a-c]", "always|eventually|kernel:a|rate|5", ".{1,4}"];
    let path = name.prop_filter_map("a path", |text| text.parse().ok());
    (any_source(), path, 0..4).prop_map(|(source, path, kind)| match kind {
        0 => Term::Value(source, path),
        1 => Term::PerSecond(path),
        2 => Term::Rate(source, path),
        _ => Term::Holes(source),
    })
}

fn any_expectation() -> impl Strategy<Value = Expectation> {
    let condition = prop_oneof![
        (any_term(), any_test()).prop_map(|(term, test)| Condition::Always(term, test)),
        (any_term(), any_test()).prop_map(|(term, test)| Condition::Eventually(term, test)),
        (any_term(), any_test()).prop_map(|(term, test)| Condition::AtEnd(term, test)),
        any_term().prop_map(Condition::Nondecreasing),
        (any_term(), 0_u32..200).prop_map(|(term, percent)| Condition::Steady(term, percent.into())),
    ];
    let after = prop_oneof![Just(None), (0_u64..100).prop_map(Some), (0_u64..86_400_000_000).prop_map(Some)];
    (condition, after, prop::option::of(0_u64..1_000)).prop_map(|(condition, after, length)| {
        let expectation = Expectation::new(condition);
        let expectation = after.map_or(expectation.clone(), |ms| expectation.after(Duration::from_millis(ms)));
        let within = length.map(|length| after.unwrap_or(0).saturating_add(length).min(86_400_000_000));
        within.map_or(expectation.clone(), |ms| expectation.within(Duration::from_millis(ms)))
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any_number().prop_map(Value::Number),
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        ".{0,4}".prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[a-c]|", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_hole() -> impl Strategy<Value = MissingStatsReason> {
    prop_oneof![
        Just(MissingStatsReason::DuringFreeze),
        any::<i32>().prop_map(|errno| MissingStatsReason::SchedulerGone { errno, cause: String::new() }),
        ".{0,4}".prop_map(|reason| MissingStatsReason::NoScheduler { reason }),
    ]
}

fn any_sample(
    stats: impl Strategy<Value = Result<Value, MissingStatsReason>>,
    kernel: impl Strategy<Value = Option<Result<SchedExt, MissingStatsReason>>>,
) -> impl Strategy<Value = Sample> {
    (stats, kernel, any::<(u8, Option<u8>)>(), 0_u64..3).prop_map(|(stats, kernel, (at, interval), session)| Sample {
        elapsed_ms: at.into(),
        session,
        interval_ms: interval.map(u64::from),
        kernel,
        ..Sample::new("t", stats)
    })
}

fn any_kernel() -> impl Strategy<Value = SchedExt> {
    (prop::option::of("[0-9a]{0,3}"), prop::option::of("[0-2]")).prop_map(|(state, enable_seq)| SchedExt {
        nr_rejected: state.clone(),
        state,
        enable_seq,
        ..SchedExt::default()
    })
}

fn any_samples() -> impl Strategy<Value = SampleSeries> {
    let stats = prop_oneof![3 => any_value().prop_map(Ok), 1 => any_hole().prop_map(Err)];
    let kernel = prop::option::of(prop_oneof![3 => any_kernel().prop_map(Ok), 1 => any_hole().prop_map(Err)]);
    prop::collection::vec(any_sample(stats, kernel), 0..12).prop_map(SampleSeries::from_iter)
}

fn only_holes() -> impl Strategy<Value = SampleSeries> {
    let kernel = prop::option::of(any_hole().prop_map(Err));
    prop::collection::vec(any_sample(any_hole().prop_map(Err), kernel), 0..12).prop_map(SampleSeries::from_iter)
}

/// Texts that go far into the parser.
fn any_text() -> impl Strategy<Value = String> {
    const WORDS: [&str; 30] = [
        "always",
        "eventually",
        "at_end",
        "nondecreasing",
        "steady",
        "per_second",
        "rate",
        "holes",
        "stats",
        "kernel",
        "kernel:",
        "(",
        ")",
        "<",
        "<=",
        "=",
        "!=",
        "after",
        "within",
        "20%",
        "5s",
        "1.5",
        "-3",
        "1e309",
        "\"",
        "\\",
        "x.y",
        " ",
        "\u{202e}",
        "%",
    ];
    let words = prop::collection::vec(prop::sample::select(&WORDS[..]), 0..10).prop_map(|words| words.join(" "));
    prop_oneof![words, ".{0,40}"]
}

proptest! {
    #[test]
    fn no_text_panics(text in any_text()) {
        if let Err(error) = text.parse::<Expectation>() {
            prop_assert!(error.column() <= text.chars().count() + 1);
            prop_assert_eq!(error.to_string().lines().count(), 1);
            let with_caret = format!("{error:#}");
            prop_assert!(with_caret.ends_with('^'));
        }
    }

    #[test]
    fn a_text_cut_anywhere_is_an_error_or_another_expectation(expectation in any_expectation(), at in 0_usize..100) {
        let text = expectation.to_string();
        let cut = &text[..text.floor_char_boundary(at)];
        if let Ok(other) = cut.parse::<Expectation>() {
            prop_assert_eq!(parsed(&other.to_string()), other);
        }
    }

    #[test]
    fn canonical_text_parses_to_the_same(expectation in any_expectation()) {
        let text = expectation.to_string();
        prop_assert_eq!(text.parse::<Expectation>()?, expectation);
    }

    #[test]
    fn every_series_has_a_verdict(expectation in any_expectation(), series in any_samples()) {
        let verdict = series.check(&expectation);
        prop_assert_eq!(verdict.to_string().lines().count(), 1);
        let kept = format!("{verdict:?}").len();
        prop_assert!(kept < 8_000, "{}", kept);
    }

    #[test]
    fn nothing_holds_on_holes_alone(expectation in any_expectation(), series in only_holes()) {
        let verdict = series.check(&expectation);
        prop_assert!(matches!(verdict, Verdict::NoData { .. }), "{}", verdict);
    }
}
