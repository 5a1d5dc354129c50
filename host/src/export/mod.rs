//! Many guests' stats for Prometheus: OpenMetrics over HTTP, all of it on one thread.
//!
//! A scrape reads every guest at the same time, each on a session of its own that lasts from scrape to scrape, and is
//! answered when all have answered or its time is over. A guest without stats by then has no series of its scheduler in
//! that scrape, and its `scx_vsock_up` is 0; if the exporter's deadline is over, too,
//! `scx_vsock_missing_stats_total` counts the reason. Scrapes that arrive while a guest is being read share the outcome.
//! A scraper's own timeout never ends what is read for others.
//!
//! Metrics are made of the scheduler's description of its stats, once a session: the name from the struct's `_om_prefix`
//! and the field, or from all names of the path to a nested field; the help from the field's description; a label for the
//! key of each dict (the struct's `_om_label`, else `key`) and the index of each array. Fields with `_om_skip` and texts
//! are skipped. All metrics are gauges, since the description has no types; a name with a suffix that OpenMetrics reserves
//! for other types, such as `_total`, has `_value` after it.
//!
//! | | bound |
//! | --- | --- |
//! | series of a guest | [`MAX_SERIES`], of at most [`MAX_METRICS`] metrics, and 2 MiB of names and labels; `scx_vsock_series_truncated` is 1 where there are more |
//! | a key that becomes a label's value | 128 bytes; a longer one counts in `scx_vsock_unusable_values`, as does what is no number |
//! | a metric's name | 200 bytes, but for a number that makes it unique |
//! | a scrape | the exporter's deadline, or 9/10 of the scraper's timeout if that is less, but 100 ms at least |
//! | reads of a guest | one in 100 ms; a scrape waits for the next |
//! | scrapers at a time | [`MAX_SCRAPERS`], and fewer where the process may not have a descriptor for each and for each guest; one more replaces one that has closed, that has not sent its request, or that has read nothing for 100 ms, or is answered 503 |
//! | pages at a time | 8, which scrapers share; those that still read the oldest are closed for one more |
//! | a request | 8 KiB, 64 headers and 5 s |
//! | a scraper that does not read its response | closed after 2 s without a byte, or 10 s |
//! | kernel memory of a scraper | 256 KiB to send, 32 KiB to receive |
//!
//! Schedulers report many numbers as deltas since the session's previous read, whichever scraper that was for. `scx_vsock_interval_seconds` says how long ago that was; it is missing if the session is new. So
//! that the first scrape's deltas span some time, guests are read once before.

mod accept;
mod clock;
mod exporter;
mod exposition;
mod http;
mod metrics;
mod names;
mod page;
mod scraper;
mod target;
mod values;

pub use exporter::{Exporter, MAX_SCRAPERS};
pub use metrics::MAX_METRICS;
pub use values::MAX_SERIES;
