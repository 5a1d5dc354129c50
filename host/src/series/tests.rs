//! Series against samples made by hand.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::snapshot_error::stat as value_at;
use super::*;
use crate::sample::Sample;
use crate::stats::MissingStatsReason;

fn sample(tag: &str, elapsed_ms: u64, session: u64, stats: Result<Value, MissingStatsReason>) -> Sample {
    Sample { elapsed_ms, session, ..Sample::new(tag, stats) }
}

fn series() -> SampleSeries {
    [
        sample("a", 1_000, 1, Ok(json!({"nr": 10, "layers": [{"util": 0.5}], "name": "x", "sys.slice": {"a\\b": 1}}))),
        sample("b", 3_000, 1, Ok(json!({"nr": 16, "layers": [], "extra": null}))),
        sample("c", 4_000, 1, Err(MissingStatsReason::DuringFreeze)),
        sample("d", 5_000, 1, Ok(json!({"nr": 20}))),
        sample("e", 5_000, 1, Ok(json!({"nr": 19}))),
        sample("f", 6_000, 2, Ok(json!({"nr": 3}))),
    ]
    .into_iter()
    .collect()
}

#[test]
fn a_path_goes_through_objects_arrays_and_escaped_names() {
    let series = series();
    let first = |path: &str| series.stats(path).unwrap().remove(0).cloned();
    assert_eq!(first("nr"), Ok(json!(10)));
    assert_eq!(first("layers.0.util"), Ok(json!(0.5)));
    assert_eq!(first(r"sys\.slice.a\\b"), Ok(json!(1)));
}

#[test]
fn a_hole_names_its_sample_and_its_reason() {
    let hole = series().stats("nr").unwrap().swap_remove(2).unwrap_err();
    assert_eq!(hole, SnapshotError::MissingStats { tag: "c".into(), reason: MissingStatsReason::DuringFreeze });
}

#[test]
fn a_missing_field_names_what_is_there() {
    let series = series();
    let missing = |path: &str, at: usize| series.stats(path).unwrap().swap_remove(at).unwrap_err().to_string();
    assert_eq!(missing("nr_cpus", 1), r#"sample "b" has no "nr_cpus" at ""; there is extra, layers, nr"#);
    assert_eq!(missing("layers.0.util", 1), r#"sample "b" has no "0" at "layers"; there is an array of 0"#);
    assert_eq!(missing("layers.x", 0), r#"sample "a" has no "x" at "layers"; there is an array of 1"#);
    assert_eq!(missing("nr.x", 0), r#"sample "a" has no "x" at "nr"; there is a number"#);
}

#[test]
fn what_is_no_path_is_refused_with_its_position() {
    for (path, problem) in [
        ("", "an empty component at byte 0"),
        (".a", "an empty component at byte 0"),
        ("a..b", "an empty component at byte 2"),
        ("a.", "an empty component at byte 2"),
        (r"a\", "a backslash before neither a dot nor a backslash at byte 1"),
        (r"a\b", "a backslash before neither a dot nor a backslash at byte 1"),
    ] {
        assert_eq!(series().stats(path).unwrap_err().to_string(), format!("{path:?} is no path: {problem}"));
    }
}

#[test]
fn columns_have_types() {
    let series = series();
    assert_eq!(series.column::<u64>("nr").unwrap()[1], Ok(16));
    assert_eq!(series.column::<i64>("nr").unwrap()[0], Ok(10));
    assert_eq!(series.column::<f64>("nr").unwrap()[0], Ok(10.0));
    assert_eq!(series.column::<String>("name").unwrap()[0], Ok("x".into()));
    let wrong = series.column::<u64>("name").unwrap().remove(0).unwrap_err().to_string();
    assert_eq!(wrong, r#"sample "a" has a string at "name", which is no u64"#);
}

#[test]
fn keys_are_those_of_all_samples() {
    let keys: Vec<String> = series().keys("").unwrap().into_iter().collect();
    assert_eq!(keys, ["extra", "layers", "name", "nr", "sys.slice"]);
    assert_eq!(series().keys("layers.0").unwrap().len(), 1);
}

#[test]
fn changes_never_reach_across_a_hole_or_a_new_session() {
    let missing = SnapshotError::MissingStats { tag: "c".into(), reason: MissingStatsReason::DuringFreeze };
    let expected = [
        Change::NewBaseline,
        Change::Since { delta: Delta::Integer(6), rate: Some(3.0) },
        Change::Missing(missing),
        Change::NewBaseline,
        Change::Since { delta: Delta::Integer(-1), rate: None },
        Change::NewBaseline,
    ];
    assert_eq!(series().changes("nr").unwrap(), expected);
}

#[test]
fn changes_of_integers_are_exact() {
    let stats = [json!(u64::MAX - 10), json!(u64::MAX), json!(i64::MIN), json!(1.5), json!(2)];
    let series: SampleSeries =
        (1..).zip(stats).map(|(second, nr)| sample("t", second * 1_000, 1, Ok(json!({ "nr": nr })))).collect();
    let integer = |delta: i128, rate: f64| Change::Since { delta: Delta::Integer(delta), rate: Some(rate) };
    let changes = series.changes("nr").unwrap();
    assert_eq!(changes[1], integer(10, 10.0));
    assert_eq!(changes[2], integer(i128::from(i64::MIN) - i128::from(u64::MAX), -27_670_116_110_564_327_423.0));
    assert!(matches!(changes[3], Change::Since { delta: Delta::Float(_), .. }));
    assert_eq!(changes[4], Change::Since { delta: Delta::Float(0.5), rate: Some(0.5) });
}

#[test]
fn a_rate_needs_time_between_the_samples() {
    let at = |elapsed_ms, nr: Value| sample("t", elapsed_ms, 1, Ok(json!({ "nr": nr })));
    // The same moment, an earlier one (of recordings that were joined), and an answer within the same millisecond.
    let at_once = Sample { interval_ms: Some(0), ..at(500, json!(9)) };
    let series: SampleSeries =
        [at(1_000, json!(1)), at(1_000, json!(5)), at(500, json!(7)), at_once].into_iter().collect();
    for (change, delta) in series.changes("nr").unwrap().into_iter().skip(1).zip([4, 2, 2]) {
        assert_eq!(change, Change::Since { delta: Delta::Integer(delta), rate: None });
    }
    assert_eq!(SampleSeries::from_json_lines(&series.to_json_lines().unwrap()).unwrap(), series);
}

#[test]
fn an_integer_and_a_float_have_the_difference_of_floats() {
    let stats = [json!(u64::MAX), json!(0.5), json!(u64::MAX), json!(1e308), json!(-1e308)];
    let series: SampleSeries =
        (1..).zip(stats).map(|(second, nr)| sample("t", second * 1_000, 1, Ok(json!({ "nr": nr })))).collect();
    let deltas: Vec<f64> = series
        .changes("nr")
        .unwrap()
        .into_iter()
        .filter_map(|change| match change {
            Change::Since { delta: delta @ Delta::Float(_), rate } => {
                assert_eq!(rate, Some(delta.as_f64()));
                Some(delta.as_f64())
            }
            _ => None,
        })
        .collect();
    let max = 18_446_744_073_709_551_615.0;
    assert_eq!(deltas, [-max, max, 1e308, f64::NEG_INFINITY]);
}

#[test]
fn a_field_without_a_name_is_not_listed() {
    let series: SampleSeries = [sample("t", 0, 1, Ok(json!({ "": 1, "a": 2 })))].into_iter().collect();
    assert_eq!(series.keys("").unwrap().into_iter().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn json_lines_that_are_truncated_or_no_samples_name_the_line() {
    let text = series().to_json_lines().unwrap();
    assert_eq!(SampleSeries::from_json_lines(&text).unwrap(), series());
    let truncated = SampleSeries::from_json_lines(&text[..text.len() - 10]).unwrap_err();
    assert_eq!(truncated.to_string(), "line 6 is no sample: it has no end; the text was truncated there");
    let torn = text.replacen("\"elapsed_ms\":3000", "\"elapsed_ms\":-1", 1);
    assert_eq!(SampleSeries::from_json_lines(&torn).unwrap_err().line, 2);
}

#[test]
fn a_line_that_is_no_sample_costs_that_line() {
    let newer =
        r#"{"tag":"x","elapsed_ms":1,"session":1,"interval_ms":null,"stats":{"Err":{"SchedulerAsleep":{"s":1}}}}"#;
    let hostile = "{\"\u{1b}[2J";
    let text = series().to_json_lines().unwrap();
    let (first, others) = text.split_once('\n').unwrap();
    let long = "x".repeat(3 * MAX_LINE_BYTES);
    let bytes = [first, newer, hostile, &long, others].join("\n").into_bytes();
    let bytes = [&bytes[..], b"\xff\n", text.as_bytes()].concat();
    let Recording { series: read, errors } = SampleSeries::read_json_lines(&bytes[..]).unwrap();
    assert_eq!(read.samples().len(), 12);
    assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 3, 4, 10]);
    assert!(errors[0].problem.contains("unknown variant `SchedulerAsleep`"), "{}", errors[0]);
    assert!(!errors[1].to_string().contains('\u{1b}') && errors[2].problem.contains("bytes"));
}

#[test]
fn what_can_be_written_can_be_read() {
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    let error = |args| Err(MissingStatsReason::SchedulerError { errno: 22, args });
    let missing = |args| Err(MissingStatsReason::MissingResp { args });
    for stats in [Ok(nested(96)), error(nested(96)), missing(nested(96))] {
        let series: SampleSeries = [sample("t", 0, 1, stats)].into_iter().collect();
        assert_eq!(SampleSeries::from_json_lines(&series.to_json_lines().unwrap()).unwrap(), series);
    }
    for stats in [Ok(nested(97)), error(nested(97)), missing(nested(97)), error(nested(123))] {
        let sample = sample("t", 0, 1, stats);
        let line = serde_json::to_string(&sample).unwrap() + "\n";
        let series: SampleSeries = [sample].into_iter().collect();
        assert_eq!(series.to_json_lines().unwrap_err().kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(SampleSeries::from_json_lines(&line).unwrap_err().line, 1);
    }
}

fn stat() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{1,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_series_survives_json_lines(stats in proptest::collection::vec(stat(), 0..8), ms: u64) {
        let series: SampleSeries =
            stats.into_iter().map(|stats| sample("t\n\u{0}", ms, 3, Ok(stats))).collect();
        prop_assert_eq!(SampleSeries::from_json_lines(&series.to_json_lines().unwrap()).unwrap(), series);
    }

    #[test]
    fn every_path_that_leads_somewhere_is_found(names in proptest::collection::vec(".{1,6}", 1..5)) {
        let path = StatPath { components: names.clone() };
        prop_assert_eq!(path.to_string().parse::<StatPath>().unwrap(), path.clone());
        let stats = names.iter().rev().fold(json!(7), |value, name| json!({ name: value }));
        let sample = sample("t", 0, 1, Ok(stats));
        prop_assert_eq!(value_at(&path, &sample).unwrap(), &json!(7));
    }
}
