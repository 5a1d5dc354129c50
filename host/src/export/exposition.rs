//! What a scrape reads: all guests' metrics as OpenMetrics or as Prometheus' older text.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::guest::{Found, Guest, Outcome};
use super::metrics::{GUEST, MAX_METRICS};
use super::values::{MAX_SERIES, Number};

/// The media type of OpenMetrics.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of Prometheus' older text.
pub(super) const PLAIN: &str = prometheus_text::CONTENT_TYPE;

/// A guest and what it has by now.
type Seen<'g> = (&'g Guest, Option<Outcome>);

type Labels = Vec<(String, String)>;

/// A page in both forms.
#[derive(Clone, Debug, Default)]
pub(super) struct Page {
    pub(super) open_metrics: String,
    pub(super) plain: String,
}

impl Page {
    pub(super) fn of(guests: &[Guest], now: Instant) -> Result<Self, fmt::Error> {
        let seen: Vec<Seen<'_>> = guests.iter().map(|guest| (guest, guest.outcome(now))).collect();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Snapshot::of(&seen)));
        let mut page = Self::default();
        text::encode(&mut page.open_metrics, &registry)?;
        prometheus_text::encode(&mut page.plain, &registry)?;
        Ok(page)
    }
}

/// Everything on a page, by the names of metrics.
#[derive(Debug, Default)]
struct Snapshot {
    /// About the guests.
    own: Vec<Family>,
    /// What their schedulers say, of all guests together.
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

impl Snapshot {
    fn of(guests: &[Seen<'_>]) -> Self {
        let mut snapshot = Self { own: own(guests), stats: BTreeMap::new() };
        for (guest, outcome) in guests {
            if let Some(Outcome { found: Some(found), .. }) = outcome {
                snapshot.add(&guest.name, found);
            }
        }
        snapshot
    }

    /// One guest's numbers. Schedulers with a metric of the same name share it, with the first one's help.
    fn add(&mut self, guest: &str, found: &Found) {
        for series in &found.values.series {
            let Some(metric) = found.plan.metrics.get(series.metric) else { continue };
            let mut labels = of(guest);
            labels.extend(series.labels.iter().cloned());
            let family = match self.stats.entry(metric.name.clone()) {
                btree_map::Entry::Occupied(entry) => entry.into_mut(),
                btree_map::Entry::Vacant(entry) => entry.insert(Family::gauge(&metric.name, &metric.help, Vec::new())),
            };
            family.series.push((labels, series.value));
        }
    }
}

fn of(guest: &str) -> Labels {
    vec![(GUEST.to_owned(), guest.to_owned())]
}

/// What is said about the guests themselves.
fn own(guests: &[Seen<'_>]) -> Vec<Family> {
    let gauge = |name: &str, help: &str, value: &dyn Fn(&Outcome) -> Option<Number>| {
        let series = |(guest, outcome): &Seen<'_>| Some((of(&guest.name), value(outcome.as_ref()?)?));
        Family::gauge(name, help, guests.iter().filter_map(series).collect())
    };
    let found =
        |outcome: &Outcome, value: &dyn Fn(&Found) -> u64| outcome.found.as_deref().map(value).map(Number::Unsigned);
    let cut = format!(
        "Whether the scheduler has more than {MAX_SERIES} series or {MAX_METRICS} metrics, so that some are left out"
    );
    vec![
        gauge("scx_vsock_up", "Whether this scrape has the guest's stats", &|outcome| {
            Some(Number::Unsigned(outcome.found.is_some().into()))
        }),
        missing(guests),
        gauge("scx_vsock_scrape_duration", "How long the guest took to answer, or was waited for", &|outcome| {
            Some(Number::Float(outcome.took.as_secs_f64()))
        })
        .in_seconds(),
        gauge("scx_vsock_span", "How long ago the session's stats were read before, which deltas span", &|outcome| {
            Some(Number::Float(outcome.found.as_ref()?.span?.as_secs_f64()))
        })
        .in_seconds(),
        gauge(
            "scx_vsock_session",
            "The number of the session; deltas have a new baseline where it changes",
            &|outcome| Some(Number::Unsigned(outcome.session)),
        ),
        gauge("scx_vsock_series_cut", &cut, &|outcome| found(outcome, &|found| found.values.cut.into())),
        gauge(
            "scx_vsock_unusable_values",
            "Values of the scheduler that are no numbers where one must be",
            &|outcome| found(outcome, &|found| found.values.unusable),
        ),
    ]
}

fn missing(guests: &[Seen<'_>]) -> Family {
    let with = |guest: &str, reason: &str| [of(guest), vec![("reason".to_owned(), reason.to_owned())]].concat();
    let of_guest = |(guest, _): &Seen<'_>| {
        let series = |(reason, count): (&&str, &u64)| (with(&guest.name, reason), Number::Unsigned(*count));
        guest.missing.iter().map(series).collect::<Vec<_>>()
    };
    let series = guests.iter().flat_map(of_guest).collect();
    let help = "Scrapes that had no stats of the guest, by the reason why";
    Family { kind: MetricType::Counter, ..Family::gauge("scx_vsock_missing_stats", help, series) }
}

impl Collector for Snapshot {
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
    use crate::export::metrics::Plan;
    use crate::export::values::Values;

    fn guest(name: &str) -> Guest {
        Guest::new(name.to_owned(), Endpoint::Unix { path: "/nowhere".into() })
    }

    fn found(meta: serde_json::Value, stats: &serde_json::Value) -> Option<Arc<Found>> {
        let plan = Plan::new(&serde_json::from_value(meta).unwrap());
        let values = Values::read(&plan, stats);
        Some(Arc::new(Found { values, plan: Arc::new(plan), span: Some(Duration::from_millis(1_500)) }))
    }

    fn outcome(found: Option<Arc<Found>>) -> Option<Outcome> {
        Some(Outcome { took: Duration::from_millis(250), session: 3, found })
    }

    fn guests() -> Vec<Guest> {
        let mut web = guest("web");
        let meta = json!({
            "Top": { "top": "true", "fields": {
                "nr": { "datum": "u64", "desc": "Number \\ of\nthings" },
                "layers": { "dict": { "key": "string", "datum": { "struct": "Layer" } } },
            } },
            "Layer": { "user": { "_om_label": "layer", "_om_prefix": "l_" }, "fields": { "util": { "datum": "float", "desc": "CPU use" } } },
        });
        let stats = json!({ "nr": 7, "layers": { "a\"b\n\\{}": { "util": 0.5 }, "z": { "util": "x" } } });
        web.last = outcome(found(meta, &stats));
        let mut database = guest("database");
        database.missing.insert("timed_out", 2);
        database.last = outcome(None);
        let mut other = guest("other");
        other.missing.insert("no_scheduler", 1);
        let meta = json!({ "T": { "top": true, "fields": { "nr": { "datum": "i64", "desc": "Something else" } } } });
        other.last = outcome(found(meta, &json!({ "nr": -1 })));
        vec![web, database, other, guest("new")]
    }

    const OPEN: &str = r#"# HELP scx_vsock_up Whether this scrape has the guest's stats
# TYPE scx_vsock_up gauge
scx_vsock_up{guest="web"} 1
scx_vsock_up{guest="database"} 0
scx_vsock_up{guest="other"} 1
# HELP scx_vsock_missing_stats Scrapes that had no stats of the guest, by the reason why
# TYPE scx_vsock_missing_stats counter
scx_vsock_missing_stats_total{guest="database",reason="timed_out"} 2
scx_vsock_missing_stats_total{guest="other",reason="no_scheduler"} 1
# HELP scx_vsock_scrape_duration_seconds How long the guest took to answer, or was waited for
# TYPE scx_vsock_scrape_duration_seconds gauge
# UNIT scx_vsock_scrape_duration_seconds seconds
scx_vsock_scrape_duration_seconds{guest="web"} 0.25
scx_vsock_scrape_duration_seconds{guest="database"} 0.25
scx_vsock_scrape_duration_seconds{guest="other"} 0.25
# HELP scx_vsock_span_seconds How long ago the session's stats were read before, which deltas span
# TYPE scx_vsock_span_seconds gauge
# UNIT scx_vsock_span_seconds seconds
scx_vsock_span_seconds{guest="web"} 1.5
scx_vsock_span_seconds{guest="other"} 1.5
# HELP scx_vsock_session The number of the session; deltas have a new baseline where it changes
# TYPE scx_vsock_session gauge
scx_vsock_session{guest="web"} 3
scx_vsock_session{guest="database"} 3
scx_vsock_session{guest="other"} 3
# HELP scx_vsock_series_cut Whether the scheduler has more than 5000 series or 1000 metrics, so that some are left out
# TYPE scx_vsock_series_cut gauge
scx_vsock_series_cut{guest="web"} 0
scx_vsock_series_cut{guest="other"} 0
# HELP scx_vsock_unusable_values Values of the scheduler that are no numbers where one must be
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
    fn a_page_has_all_guests_by_the_names_of_metrics() {
        let page = Page::of(&guests(), Instant::now()).unwrap();
        assert_eq!(page.open_metrics, OPEN);
        let plain = OPEN
            .replace("missing_stats Scrapes", "missing_stats_total Scrapes")
            .replace("missing_stats counter", "missing_stats_total counter")
            .replace("# UNIT scx_vsock_scrape_duration_seconds seconds\n", "")
            .replace("# UNIT scx_vsock_span_seconds seconds\n", "")
            .replace("# EOF\n", "");
        assert_eq!(page.plain, plain);
    }
}
