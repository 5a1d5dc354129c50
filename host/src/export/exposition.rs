//! What a scrape reads: the metrics of all targets as OpenMetrics or as Prometheus' older text.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::{GUEST, MAX_METRICS};
use super::target::{Outcome, Target, TargetStats};
use super::values::{MAX_SERIES, Number};

/// The media type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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

/// Returns the metrics of all targets. One that is being read, and has no outcome since `since`, has no stats.
///
/// # Errors
///
/// If they cannot be encoded.
pub(super) fn build(form: Form, targets: &[Target], since: Instant, now: Instant) -> Result<String, fmt::Error> {
    let scraped: Vec<Scraped<'_>> = targets.iter().map(|target| (target, target.outcome(since, now))).collect();
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
    stats: BTreeMap<String, Family>,
}

#[derive(Debug)]
struct Family {
    name: String,
    help: String,
    unit: Option<Unit>,
    kind: MetricType,
    series: Vec<(Labels, Number)>,
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
        let mut families = Self { own: own(scraped), stats: BTreeMap::new() };
        for (target, outcome) in scraped {
            if let Some(Outcome { stats: Some(stats), .. }) = outcome {
                families.add(&target.name, stats);
            }
        }
        families
    }

    /// Adds one target's series. Schedulers with a metric of the same name share its family, with the first one's help.
    fn add(&mut self, target: &str, stats: &TargetStats) {
        for series in &stats.values.series {
            let Some(metric) = stats.metrics.metrics.get(series.metric) else { continue };
            let mut labels = labels_of(target);
            labels.extend(series.labels.iter().cloned());
            let family = match self.stats.entry(metric.name.clone()) {
                btree_map::Entry::Occupied(entry) => entry.into_mut(),
                btree_map::Entry::Vacant(entry) => entry.insert(Family::gauge(&metric.name, &metric.help, Vec::new())),
            };
            family.series.push((labels, series.value));
        }
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
    let of_stats = |outcome: &Outcome, value: &dyn Fn(&TargetStats) -> u64| {
        outcome.stats.as_deref().map(value).map(Number::Unsigned)
    };
    let truncated = format!("Whether the scheduler has more than {MAX_SERIES} series or {MAX_METRICS} metrics");
    vec![
        gauge("scx_vsock_up", "Whether this scrape has the guest's stats", &|outcome| {
            Some(Number::Unsigned(outcome.stats.is_some().into()))
        }),
        missing(scraped),
        gauge("scx_vsock_scrape_duration", "Time until the guest answered or the scrape ended", &|outcome| {
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
        gauge("scx_vsock_series_truncated", &truncated, &|outcome| {
            of_stats(outcome, &|stats| stats.values.is_truncated.into())
        }),
        gauge(
            "scx_vsock_unusable_values",
            "Values of the scheduler that are no numbers, or whose key is too long for a label",
            &|outcome| of_stats(outcome, &|stats| stats.values.unusable),
        ),
    ]
}

fn missing(scraped: &[Scraped<'_>]) -> Family {
    let with =
        |target: &str, reason: &str| [labels_of(target), vec![("reason".to_owned(), reason.to_owned())]].concat();
    let of_target = |(target, _): &Scraped<'_>| {
        let series = |(reason, count): (&&str, &u64)| (with(&target.name, reason), Number::Unsigned(*count));
        target.missing.iter().map(series).collect::<Vec<_>>()
    };
    let series = scraped.iter().flat_map(of_target).collect();
    let help = "Scrapes without the guest's stats, by the reason why";
    Family { kind: MetricType::Counter, ..Family::gauge("scx_vsock_missing_stats", help, series) }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let families = self.own.iter().chain(self.stats.values()).filter(|family| !family.series.is_empty());
        for family in families {
            let mut metric =
                encoder.encode_descriptor(&family.name, &family.help, family.unit.as_ref(), family.kind)?;
            for (labels, value) in &family.series {
                let mut series = metric.encode_family(labels)?;
                match (family.kind, value) {
                    (MetricType::Counter, Number::Unsigned(count)) => {
                        series.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                    }
                    (_, Number::Unsigned(value)) => series.encode_gauge(value)?,
                    (_, Number::Signed(value)) => series.encode_gauge(value)?,
                    (_, Number::Float(value)) => series.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::export::metrics::MetricSet;
    use crate::export::values::Values;

    fn target(name: &str) -> Target {
        Target::new(name.to_owned(), Endpoint::Unix { path: "/nowhere".into() })
    }

    fn stats(meta: serde_json::Value, stats: &serde_json::Value) -> Option<Arc<TargetStats>> {
        let metrics = MetricSet::new(&serde_json::from_value(meta).unwrap());
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
                "layers": { "dict": { "key": "string", "datum": { "struct": "Layer" } } },
            } },
            "Layer": { "user": { "_om_label": "layer", "_om_prefix": "l_" }, "fields": { "util": { "datum": "float", "desc": "CPU use" } } },
        });
        let answer = json!({ "nr": 7, "layers": { "a\"b\n\\{}": { "util": 0.5 }, "z": { "util": "x" } } });
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

    const OPEN: &str = r#"# HELP scx_vsock_up Whether this scrape has the guest's stats
# TYPE scx_vsock_up gauge
scx_vsock_up{guest="web"} 1
scx_vsock_up{guest="database"} 0
scx_vsock_up{guest="other"} 1
# HELP scx_vsock_missing_stats Scrapes without the guest's stats, by the reason why
# TYPE scx_vsock_missing_stats counter
scx_vsock_missing_stats_total{guest="database",reason="timed_out"} 2
scx_vsock_missing_stats_total{guest="other",reason="no_scheduler"} 1
# HELP scx_vsock_scrape_duration_seconds Time until the guest answered or the scrape ended
# TYPE scx_vsock_scrape_duration_seconds gauge
# UNIT scx_vsock_scrape_duration_seconds seconds
scx_vsock_scrape_duration_seconds{guest="web"} 0.25
scx_vsock_scrape_duration_seconds{guest="database"} 0.25
scx_vsock_scrape_duration_seconds{guest="other"} 0.25
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
# HELP scx_vsock_unusable_values Values of the scheduler that are no numbers, or whose key is too long for a label
# TYPE scx_vsock_unusable_values gauge
scx_vsock_unusable_values{guest="web"} 1
scx_vsock_unusable_values{guest="other"} 0
# HELP scx_l_util CPU use
# TYPE scx_l_util gauge
scx_l_util{guest="web",layer="a\"b\n\\{}"} 0.5
# HELP scx_nr Number / of things
# TYPE scx_nr gauge
scx_nr{guest="web"} 7
scx_nr{guest="other"} -1
# EOF
"#;

    #[test]
    fn an_exposition_has_all_targets_by_metric() {
        let now = Instant::now();
        let page = |form| build(form, &targets(), now, now).unwrap();
        assert_eq!(page(Form::OpenMetrics), OPEN);
        let plain = OPEN
            .replace("missing_stats Scrapes", "missing_stats_total Scrapes")
            .replace("missing_stats counter", "missing_stats_total counter")
            .replace("# UNIT scx_vsock_scrape_duration_seconds seconds\n", "")
            .replace("# UNIT scx_vsock_interval_seconds seconds\n", "")
            .replace("# EOF\n", "");
        assert_eq!(page(Form::Plain), plain);
    }
}
