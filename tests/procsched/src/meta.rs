//! The answer to `stats_meta`: every struct by its name, each field with its kind and description.

use serde_json::{Map, Value, json};

/// Returns the description of everything that `stats` can answer.
pub fn structs() -> Value {
    Value::Object([top(), cpu(), counters(), cpu_time(), runqueue(), load()].into_iter().collect())
}

fn top() -> (String, Value) {
    let fields = [
        ("elapsed_ms", datum("u64", "Milliseconds since this connection's last read")),
        ("totals", datum(json!({ "struct": "Counters" }), "Counters since boot")),
        ("delta", datum(json!({ "struct": "Counters" }), "Counters since this connection's last read")),
        ("load", datum(json!({ "struct": "Load" }), "Load averages")),
    ];
    struct_meta("Top", "Scheduling counters of the machine", &[("top", json!(true))], fields)
}

fn cpu() -> (String, Value) {
    let fields = [
        ("total", datum(json!({ "struct": "CpuTime" }), "Ticks since boot")),
        ("delta", datum(json!({ "struct": "CpuTime" }), "Ticks since this connection's last read")),
    ];
    struct_meta("Cpu", "Time of all processors together (target cpu)", &[], fields)
}

fn counters() -> (String, Value) {
    let fields = [
        ("cpu", datum(json!({ "struct": "CpuTime" }), "All processors together")),
        ("cpus", dict("CpuTime", "Each processor by its number")),
        ("ctxt", datum("u64", "Context switches")),
        ("processes", datum("u64", "Created processes and threads")),
        ("runqueues", dict("Runqueue", "Each processor's run queue by its number")),
    ];
    struct_meta("Counters", "The counters of /proc/stat and /proc/schedstat", &[], fields)
}

fn cpu_time() -> (String, Value) {
    let fields = [
        ("user", datum("u64", "Ticks in user mode")),
        ("nice", datum("u64", "Ticks in user mode at low priority")),
        ("system", datum("u64", "Ticks in the kernel")),
        ("idle", datum("u64", "Ticks idle")),
        ("iowait", datum("u64", "Ticks idle with I/O outstanding")),
        ("irq", datum("u64", "Ticks in hard interrupts")),
        ("softirq", datum("u64", "Ticks in soft interrupts")),
        ("steal", datum("u64", "Ticks taken by the hypervisor")),
    ];
    struct_meta("CpuTime", "Ticks that a processor spent", &om_label("cpu"), fields)
}

fn runqueue() -> (String, Value) {
    let fields = [
        ("run_ns", datum("u64", "Nanoseconds that tasks ran")),
        ("wait_ns", datum("u64", "Nanoseconds that tasks waited to run")),
        ("timeslices", datum("u64", "Times that a task was given the processor")),
    ];
    struct_meta("Runqueue", "A processor's line of /proc/schedstat", &om_label("cpu"), fields)
}

fn load() -> (String, Value) {
    let fields = [
        ("one", datum("float", "Load average of one minute")),
        ("five", datum("float", "Load average of five minutes")),
        ("fifteen", datum("float", "Load average of fifteen minutes")),
        ("runnable", datum("u64", "Threads that run or wait to run")),
        ("threads", datum("u64", "All threads")),
    ];
    struct_meta("Load", "The contents of /proc/loadavg", &[], fields)
}

/// Returns the attribute that names the label under which a dict's key is exported.
fn om_label(label: &str) -> [(&'static str, Value); 1] {
    [("user", json!({ "_om_label": label }))]
}

fn struct_meta<const FIELDS: usize>(
    name: &str,
    desc: &str,
    attributes: &[(&str, Value)],
    fields: [(&str, Value); FIELDS],
) -> (String, Value) {
    let fields: Map<String, Value> = fields.into_iter().map(|(name, field)| (name.to_owned(), field)).collect();
    let mut meta = Map::new();
    meta.insert("name".to_owned(), json!(name));
    meta.insert("desc".to_owned(), json!(desc));
    meta.extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    meta.insert("fields".to_owned(), Value::Object(fields));
    (name.to_owned(), Value::Object(meta))
}

fn datum(kind: impl Into<Value>, desc: &str) -> Value {
    json!({ "datum": kind.into(), "desc": desc })
}

fn dict(of: &str, desc: &str) -> Value {
    json!({ "dict": { "key": "string", "datum": { "struct": of } }, "desc": desc })
}
