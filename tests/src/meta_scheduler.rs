//! A scheduler with the `stats_meta` of a real layered one, for tests of export and display.

use serde_json::{Value, json};

use crate::scripted_scheduler::{Script, ScriptedScheduler};

/// Returns the `stats_meta` of a layered scheduler, shortened.
#[must_use]
pub fn meta() -> Value {
    json!({
        "SysStats": {
            "name": "SysStats", "desc": "stats of all", "top": "true",
            "fields": {
                "at": { "datum": "float", "desc": "timestamp", "user": { "_om_skip": "true" } },
                "nr_nodes": { "datum": "u64", "desc": "number of NUMA nodes" },
                "total": { "datum": "u64", "desc": "number of scheduling events" },
                "local": { "datum": "float", "desc": "% dispatched directly into an idle CPU" },
                "layers": { "dict": { "key": "string", "datum": { "struct": "LayerStats" } } },
            },
        },
        "LayerStats": {
            "name": "LayerStats", "desc": "stats of a layer", "user": { "_om_prefix": "l_", "_om_label": "layer_name" },
            "fields": {
                "util": { "datum": "float", "desc": "CPU utilization (100% means one full CPU)" },
                "nr_tasks": { "datum": "u64", "desc": "number of tasks" },
                "cpus": { "array": "u64", "desc": "CPUs of this layer" },
            },
        },
    })
}

/// Returns stats that [`meta`] describes.
#[must_use]
pub fn stats() -> Value {
    json!({
        "at": 12.5, "nr_nodes": 2, "total": 12345, "local": 87.5,
        "layers": {
            "batch": { "util": 150.25, "nr_tasks": 7, "cpus": [1, 3] },
            "normal \"x\"": { "util": 0, "nr_tasks": 100, "cpus": [] },
        },
    })
}

/// Returns the response line with this `resp`.
#[must_use]
pub fn answer(resp: &Value) -> String {
    format!("{}\n", json!({ "errno": 0, "args": { "resp": resp } }))
}

/// Starts a scheduler that answers on every connection with `meta` once, and then with `stats` to each request.
#[must_use]
pub fn scheduler(meta: &Value, stats: &Value) -> ScriptedScheduler {
    let again = Script::new().expect(r#"{"req":"stats","args":{}}"#).send(answer(stats));
    let session = Script::new().expect(r#"{"req":"stats_meta","args":{}}"#).send(answer(meta)).forever(again);
    ScriptedScheduler::start(std::iter::repeat(session))
}
