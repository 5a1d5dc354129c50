//! What a scrape reads: the metrics of all targets as OpenMetrics or as Prometheus' older text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::{GUEST, MAX_METRICS, Metric, MetricForm};
use super::target::{Outcome, Target, TargetStats};
use super::values::{MAX_BUCKETS, MAX_SERIES, Number, Reading, Series};

/// The media type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The most that a histogram's bucket counts, so that all together are no more than a counter has.
const MAX_COUNT: u64 = u64::MAX / MAX_BUCKETS as u64;

/// A target and its outcome so far.
type Scraped<'t> = (&'t Target, Option<Outcome>);

type Labels = Vec<(String, String)>;

/// A form of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    OpenMetrics,
    /// Prometheus' older text.
    Plain,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::OpenMetrics, Self::Plain];

    /// Returns the media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => OPEN_METRICS,
            Self::Plain => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Returns the metrics of all targets. One that has no outcome yet has no stats.
///
/// # Errors
///
/// If they cannot be encoded.
pub(super) fn build(form: Form, targets: &[Target], now: Instant) -> Result<String, fmt::Error> {
    let scraped: Vec<Scraped<'_>> = targets.iter().map(|target| (target, target.outcome(now))).collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families::new(&scraped)));
    let mut page = String::new();
    match form {
        Form::OpenMetrics => text::encode(&mut page, &registry)?,
        Form::Plain => prometheus_text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

/// All metric families.
#[derive(Debug, Default)]
struct Families {
    /// About the targets.
    own: Vec<Family>,
    /// Of their schedulers, all targets together, by the metric's name.
    stats: BTreeMap<String, StatsFamily>,
    /// The names and stats of those targets that have some.
    targets: Vec<(String, Arc<TargetStats>)>,
}

/// A family about the targets.
#[derive(Debug)]
struct Family {
    name: String,
    help: String,
    unit: Option<Unit>,
    kind: MetricType,
    series: Vec<(Labels, Number)>,
}

/// A family of schedulers' stats.
#[derive(Debug)]
struct StatsFamily {
    help: String,
    part: Part,
    /// The target, and its series.
    series: Vec<(usize, usize)>,
}

/// Which part of its series a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Value,
    Sum,
    Buckets,
}

impl Part {
    fn kind(self) -> MetricType {
        match self {
            Self::Value => MetricType::Gauge,
            Self::Sum => MetricType::Counter,
            Self::Buckets => MetricType::Histogram,
        }
    }

    fn unit(self) -> Option<&'static Unit> {
        (self == Self::Buckets).then_some(&Unit::Seconds)
    }
}

impl Family {
    fn gauge(name: &str, help: &str, series: Vec<(Labels, Number)>) -> Self {
        Self { name: name.to_owned(), help: help.to_owned(), unit: None, kind: MetricType::Gauge, series }
    }

    fn in_seconds(self) -> Self {
        Self { unit: Some(Unit::Seconds), ..self }
    }
}

impl Families {
    fn new(scraped: &[Scraped<'_>]) -> Self {
        let own = own(scraped).into_iter().chain(of_kernels(scraped)).collect();
        let mut families = Self { own, ..Self::default() };
        for (target, outcome) in scraped {
            if let Some(Outcome { stats: Some(stats), .. }) = outcome {
                families.add(&target.name, stats);
            }
        }
        families
    }

    fn add(&mut self, target: &str, stats: &Arc<TargetStats>) {
        let index = self.targets.len();
        self.targets.push((target.to_owned(), Arc::clone(stats)));
        for (at, series) in stats.values.series.iter().enumerate() {
            let Some(metric) = stats.metrics.metrics.get(series.metric) else { continue };
            let part = if matches!(metric.form, MetricForm::Histogram { .. }) { Part::Buckets } else { Part::Value };
            self.add_series(&metric.name, part, metric, (index, at));
            if let (MetricForm::Counted { counter }, Reading::Counted { .. }) = (&metric.form, &series.reading) {
                self.add_series(counter, Part::Sum, metric, (index, at));
            }
        }
    }

    /// Schedulers with a metric of the same name share its family, with the first one's help.
    fn add_series(&mut self, name: &str, part: Part, metric: &Metric, at: (usize, usize)) {
        let family = match self.stats.get_mut(name) {
            Some(family) => family,
            None => {
                let new = StatsFamily { help: help(part, metric), part, series: Vec::new() };
                self.stats.entry(name.to_owned()).or_insert(new)
            }
        };
        family.series.push(at);
    }

    /// The series of a target's stats, with the target's name.
    fn series(&self, (target, at): (usize, usize)) -> Option<(&str, &Series, &Metric)> {
        let (name, stats) = self.targets.get(target)?;
        let series = stats.values.series.get(at)?;
        Some((name, series, stats.metrics.metrics.get(series.metric)?))
    }
}

fn help(part: Part, metric: &Metric) -> String {
    match part {
        Part::Value => metric.help.clone(),
        Part::Sum => format!("{} (sum over all reads)", metric.help),
        Part::Buckets => format!("{} (counts of all reads; the sum is an estimate by the buckets)", metric.help),
    }
}

fn labels_of(target: &str) -> Labels {
    vec![(GUEST.to_owned(), target.to_owned())]
}

/// The families about the targets themselves.
fn own(scraped: &[Scraped<'_>]) -> Vec<Family> {
    let gauge = |name: &str, help: &str, value: &dyn Fn(&Outcome) -> Option<Number>| {
        let series = |(target, outcome): &Scraped<'_>| Some((labels_of(&target.name), value(outcome.as_ref()?)?));
        Family::gauge(name, help, scraped.iter().filter_map(series).collect())
    };
    vec![
        gauge("scx_vsock_up", "Whether the newest read of the guest had stats", &|outcome| {
            Some(Number::Unsigned(outcome.stats.is_some().into()))
        }),
        missing(scraped),
        gauge("scx_vsock_read_duration", "Time until the guest answered or the read ended", &|outcome| {
            Some(Number::Float(outcome.duration.as_secs_f64()))
        })
        .in_seconds(),
        gauge("scx_vsock_interval", "Time since the session's previous read, which deltas span", &|outcome| {
            Some(Number::Float(outcome.stats.as_ref()?.interval?.as_secs_f64()))
        })
        .in_seconds(),
        gauge(
            "scx_vsock_session",
            "The number of the session; deltas have a new baseline where it changes",
            &|outcome| Some(Number::Unsigned(outcome.session)),
        ),
        of_stats(
            scraped,
            "scx_vsock_series_truncated",
            &format!("Whether the scheduler has more than {MAX_SERIES} series or {MAX_METRICS} metrics"),
            |stats| stats.values.is_truncated.into(),
        ),
        of_stats(
            scraped,
            "scx_vsock_undescribed_fields",
            "Fields of the scheduler's answer that have no metric, since its description does not have them",
            |stats| stats.values.undescribed,
        ),
        of_stats(
            scraped,
            "scx_vsock_unusable_values",
            "Values of the scheduler that are not what its description says, or whose key is too long for a label",
            |stats| stats.values.unusable,
        ),
    ]
}

/// The families about what the kernels say.
fn of_kernels(scraped: &[Scraped<'_>]) -> [Family; 4] {
    let labels = |target: &Target, name: &str, value: &str| {
        [labels_of(&target.name), vec![(name.to_owned(), value.to_owned())]].concat()
    };
    let (mut states, mut infos, mut enables, mut events) = (vec![], vec![], vec![], vec![]);
    for (target, _) in scraped {
        if let Some((state, ops)) = &target.kernel.newest {
            states.push((labels(target, "state", state), Number::Unsigned(1)));
            infos.extend(ops.iter().map(|ops| (labels(target, "ops", ops), Number::Unsigned(1))));
        }
        enables.extend(target.kernel.enables().map(|sum| (labels_of(&target.name), Number::Unsigned(sum))));
        let event = |(name, sum): (&String, u64)| (labels(target, "event", name), Number::Unsigned(sum));
        events.extend(target.kernel.events().map(event));
    }
    let counter = |name, help, series| Family { kind: MetricType::Counter, ..Family::gauge(name, help, series) };
    [
        Family::gauge("sched_ext_state", "The state of sched_ext in the guest's kernel", states),
        Family::gauge("sched_ext_info", "The sched_ext scheduler that the guest's kernel runs", infos),
        counter("sched_ext_enables", "Schedulers that the guest's kernel enabled", enables),
        counter("sched_ext_events", "Events of the guest's kernel about its schedulers", events),
    ]
}

/// A gauge of the targets that have stats.
fn of_stats(scraped: &[Scraped<'_>], name: &str, help: &str, value: impl Fn(&TargetStats) -> u64) -> Family {
    let series = |(target, outcome): &Scraped<'_>| {
        let stats = outcome.as_ref()?.stats.as_deref()?;
        Some((labels_of(&target.name), Number::Unsigned(value(stats))))
    };
    Family::gauge(name, help, scraped.iter().filter_map(series).collect())
}

fn missing(scraped: &[Scraped<'_>]) -> Family {
    let with =
        |target: &str, reason: &str| [labels_of(target), vec![("reason".to_owned(), reason.to_owned())]].concat();
    let of_target = |(target, _): &Scraped<'_>| {
        let series = |(reason, count): (&&str, &u64)| (with(&target.name, reason), Number::Unsigned(*count));
        target.missing.iter().map(series).collect::<Vec<_>>()
    };
    let series = scraped.iter().flat_map(of_target).collect();
    let help = "Reads without the guest's stats, by the reason why";
    Family { kind: MetricType::Counter, ..Family::gauge("scx_vsock_missing_stats", help, series) }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for family in self.own.iter().filter(|family| !family.series.is_empty()) {
            let Family { name, help, unit, kind, series } = family;
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?;
            for (labels, value) in series {
                let mut series = metric.encode_family(labels)?;
                match (kind, value) {
                    (MetricType::Counter, Number::Unsigned(count)) => encode_count(&mut series, *count)?,
                    _ => encode_number(&mut series, *value)?,
                }
            }
        }
        for (name, family) in &self.stats {
            let (kind, unit) = (family.part.kind(), family.part.unit());
            let mut metric = encoder.encode_descriptor(name, &family.help, unit, kind)?;
            for (target, series, of) in family.series.iter().filter_map(|&at| self.series(at)) {
                let labels = ([(GUEST, target)], series.labels.as_slice());
                encode_series(&mut metric.encode_family(&labels)?, family.part, series, of)?;
            }
        }
        Ok(())
    }
}

fn encode_series(encoder: &mut MetricEncoder<'_>, part: Part, series: &Series, of: &Metric) -> fmt::Result {
    match (part, &series.reading, &of.form) {
        (Part::Value, Reading::Number(value), _) => encode_number(encoder, *value),
        (Part::Value, Reading::Counted { value, .. }, _) => encode_number(encoder, Number::Unsigned(*value)),
        (Part::Value, Reading::Text, _) => encode_number(encoder, Number::Unsigned(1)),
        (Part::Sum, Reading::Counted { sum, .. }, _) => encode_count(encoder, *sum),
        (Part::Buckets, Reading::Buckets(counts), MetricForm::Histogram { unit }) => {
            encode_buckets(encoder, counts, *unit)
        }
        _ => Ok(()),
    }
}

fn encode_number(encoder: &mut MetricEncoder<'_>, number: Number) -> fmt::Result {
    match number {
        Number::Unsigned(value) => encoder.encode_gauge(&value),
        Number::Signed(value) => encoder.encode_gauge(&value),
        Number::Float(value) => encoder.encode_gauge(&value),
    }
}

fn encode_count(encoder: &mut MetricEncoder<'_>, count: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn encode_buckets(encoder: &mut MetricEncoder<'_>, counts: &[u64], unit: Duration) -> fmt::Result {
    let bounds = std::iter::successors(Some(2.0 * unit.as_secs_f64()), |bound| Some(2.0 * bound));
    let mut buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().map(|&count| count.min(MAX_COUNT))).collect();
    // Values are between a bucket's bound and the half of that.
    let sum: f64 = buckets.iter().map(|(bound, count)| 0.75 * bound * approximate(*count)).sum();
    if let Some((bound, _)) = buckets.last_mut() {
        *bound = f64::INFINITY;
    }
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

/// The nearest float of a count.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn approximate(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::export::metrics::MetricSet;
    use crate::export::values::Values;
    use crate::stats::meta::Meta;

    fn target(name: &str) -> Target {
        Target::new(name.to_owned(), Endpoint::Unix { path: "/nowhere".into() }, Instant::now(), false)
    }

    fn stats(meta: serde_json::Value, stats: &serde_json::Value) -> Option<Arc<TargetStats>> {
        let meta: Meta = serde_json::from_value(meta).unwrap();
        let metrics = MetricSet::new(&meta, meta.tops().next().unwrap());
        let values = Values::read(&metrics, stats);
        let interval = Some(Duration::from_millis(1_500));
        Some(Arc::new(TargetStats { values, metrics: Arc::new(metrics), interval }))
    }

    fn outcome(stats: Option<Arc<TargetStats>>) -> Option<Outcome> {
        Some(Outcome { duration: Duration::from_millis(250), session: 3, stats })
    }

    fn targets() -> Vec<Target> {
        let mut web = target("web");
        let meta = json!({
            "Top": { "top": "true", "fields": {
                "nr": { "datum": "u64", "desc": "Number \\ of\nthings" },
                "mode": { "datum": "string", "desc": "Mode" },
                "waits": { "array": "u64", "desc": "Waits", "user": { "_om_histogram": "log2_s" } },
                "layers": { "dict": { "key": "string", "datum": { "struct": "Layer" } } },
            } },
            "Layer": { "user": { "_om_label": "layer", "_om_prefix": "l_" }, "fields": { "util": { "datum": "float", "desc": "CPU use" } } },
        });
        let answer = json!({ "nr": 7, "mode": "a \"b\"", "waits": [4, 2, 1], "extra": 1, "layers": { "a\"b\n\\{}": { "util": 0.5 }, "z": { "util": "x" } } });
        web.last = outcome(stats(meta, &answer));
        let mut database = target("database");
        database.missing.insert("timed_out", 2);
        database.last = outcome(None);
        let mut other = target("other");
        other.missing.insert("no_scheduler", 1);
        let meta = json!({ "T": { "top": true, "fields": { "nr": { "datum": "i64", "desc": "Something else" } } } });
        other.last = outcome(stats(meta, &json!({ "nr": -1 })));
        vec![web, database, other, target("new")]
    }

    const OPEN: &str = r#"# HELP scx_vsock_up Whether the newest read of the guest had stats
# TYPE scx_vsock_up gauge
scx_vsock_up{guest="web"} 1
scx_vsock_up{guest="database"} 0
scx_vsock_up{guest="other"} 1
# HELP scx_vsock_missing_stats Reads without the guest's stats, by the reason why
# TYPE scx_vsock_missing_stats counter
scx_vsock_missing_stats_total{guest="database",reason="timed_out"} 2
scx_vsock_missing_stats_total{guest="other",reason="no_scheduler"} 1
# HELP scx_vsock_read_duration_seconds Time until the guest answered or the read ended
# TYPE scx_vsock_read_duration_seconds gauge
# UNIT scx_vsock_read_duration_seconds seconds
scx_vsock_read_duration_seconds{guest="web"} 0.25
scx_vsock_read_duration_seconds{guest="database"} 0.25
scx_vsock_read_duration_seconds{guest="other"} 0.25
# HELP scx_vsock_interval_seconds Time since the session's previous read, which deltas span
# TYPE scx_vsock_interval_seconds gauge
# UNIT scx_vsock_interval_seconds seconds
scx_vsock_interval_seconds{guest="web"} 1.5
scx_vsock_interval_seconds{guest="other"} 1.5
# HELP scx_vsock_session The number of the session; deltas have a new baseline where it changes
# TYPE scx_vsock_session gauge
scx_vsock_session{guest="web"} 3
scx_vsock_session{guest="database"} 3
scx_vsock_session{guest="other"} 3
# HELP scx_vsock_series_truncated Whether the scheduler has more than 5000 series or 1000 metrics
# TYPE scx_vsock_series_truncated gauge
scx_vsock_series_truncated{guest="web"} 0
scx_vsock_series_truncated{guest="other"} 0
# HELP scx_vsock_undescribed_fields Fields of the scheduler's answer that have no metric, since its description does not have them
# TYPE scx_vsock_undescribed_fields gauge
scx_vsock_undescribed_fields{guest="web"} 1
scx_vsock_undescribed_fields{guest="other"} 0
# HELP scx_vsock_unusable_values Values of the scheduler that are not what its description says, or whose key is too long for a label
# TYPE scx_vsock_unusable_values gauge
scx_vsock_unusable_values{guest="web"} 1
scx_vsock_unusable_values{guest="other"} 0
# HELP scx_l_util CPU use
# TYPE scx_l_util gauge
scx_l_util{guest="web",layer="a\"b\n\\{}"} 0.5
# HELP scx_mode_info Mode
# TYPE scx_mode_info gauge
scx_mode_info{guest="web",mode="a \"b\""} 1
# HELP scx_nr Number / of things
# TYPE scx_nr gauge
scx_nr{guest="web"} 7
scx_nr{guest="other"} -1
# HELP scx_nr_accumulated Number / of things (sum over all reads)
# TYPE scx_nr_accumulated counter
scx_nr_accumulated_total{guest="web"} 7
# HELP scx_waits_distribution_seconds Waits (counts of all reads; the sum is an estimate by the buckets)
# TYPE scx_waits_distribution_seconds histogram
# UNIT scx_waits_distribution_seconds seconds
scx_waits_distribution_seconds_sum{guest="web"} 18.0
scx_waits_distribution_seconds_count{guest="web"} 7
scx_waits_distribution_seconds_bucket{le="2.0",guest="web"} 4
scx_waits_distribution_seconds_bucket{le="4.0",guest="web"} 6
scx_waits_distribution_seconds_bucket{le="+Inf",guest="web"} 7
# EOF
"#;

    /// The histogram as the older text has it.
    const PLAIN_HISTOGRAM: &str = r#"scx_waits_distribution_seconds_bucket{guest="web",le="2"} 4
scx_waits_distribution_seconds_bucket{guest="web",le="4"} 6
scx_waits_distribution_seconds_bucket{guest="web",le="+Inf"} 7
scx_waits_distribution_seconds_sum{guest="web"} 18.0
scx_waits_distribution_seconds_count{guest="web"} 7
"#;

    #[test]
    fn an_exposition_has_all_targets_by_metric() {
        let now = Instant::now();
        let page = |form| build(form, &targets(), now).unwrap();
        assert_eq!(page(Form::OpenMetrics), OPEN);
        let plain = OPEN
            .replace("nr_accumulated Number", "nr_accumulated_total Number")
            .replace("nr_accumulated counter", "nr_accumulated_total counter")
            .replace("# UNIT scx_waits_distribution_seconds seconds\n", "")
            .replace("missing_stats Reads", "missing_stats_total Reads")
            .replace("missing_stats counter", "missing_stats_total counter")
            .replace("# UNIT scx_vsock_read_duration_seconds seconds\n", "")
            .replace("# UNIT scx_vsock_interval_seconds seconds\n", "")
            .replace("# EOF\n", "");
        let (before, _) = plain.split_once("scx_waits_distribution_seconds_sum").unwrap();
        let plain = before.to_owned() + PLAIN_HISTOGRAM;
        assert_eq!(page(Form::Plain), plain);
    }
}
