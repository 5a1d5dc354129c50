//! Many guests' stats for Prometheus: OpenMetrics over HTTP, all of it on one thread.
//!
//! Each guest is read at an interval, on a session of its own, and a page has what each answered last. A guest without stats
//! has no series of its scheduler, its `scx_vsock_up` is 0, and `scx_vsock_missing_stats_total` counts the reason. A scrape
//! reads nothing and waits for nobody, but for the first read of the guests that there are from the beginning: no scraper
//! and no guest changes what another one gets.
//!
//! Schedulers report many numbers as deltas since the session's previous read, `scx_vsock_interval_seconds` ago (missing in
//! a session's first answer). That is why scrapes read nothing: a second scraper would take a part of the first one's
//! deltas. A session for each scraper would need to know who scrapes, an agent has few, and some schedulers have one
//! session at a time. So that no delta is lost between two scrapes, each number of the kind `u64` has a counter beside its
//! gauge, `..._accumulated_total`, which adds up all reads, across sessions and restarts of the scheduler, but for the
//! first of each session, which spans an unknown time. A series begins anew when it was missing in an answer.
//!
//! Metrics are made of the scheduler's description of its stats: the name from the struct's `_om_prefix` and the field, or
//! from all names of the path to a nested field; the help from the field's description; a label for the key of each dict
//! (the struct's `_om_label`, else `key`) and the index of each array. Of several structs that are marked as top, that one
//! counts which the answer fits best. The description has no types, so that numbers are gauges; a name with a suffix that
//! OpenMetrics reserves for other types, such as `_total`, has `_value` after it. A text is a gauge of 1 with the text as
//! a label, named `..._info`. An array with the attribute `_om_histogram` is a histogram. Fields with `_om_skip` are
//! skipped, unless they are texts. What an answer has beside that counts in `scx_vsock_undescribed_fields`.
//!
//! With [`Exporter::kernel`], each read is followed by one of what the guest's kernel says, also where no scheduler serves
//! stats: `sched_ext_state` and `sched_ext_info` (gauges of 1 with the state and the scheduler's name as labels), and the
//! counters `sched_ext_enables_total` and `sched_ext_events_total`, which go on where the kernel's own begin anew.
//!
//! | | bound |
//! | --- | --- |
//! | series of a guest | [`MAX_SERIES`], of at most [`MAX_METRICS`] metrics, and 2 MiB of names and labels, the counters beside them not counted; `scx_vsock_series_truncated` is 1 where there are more |
//! | a key that becomes a label's value | 128 bytes; a longer one counts in `scx_vsock_unusable_values`, as does what is not as described |
//! | a text that becomes a label's value | its first 256 bytes |
//! | a histogram | 64 buckets |
//! | a metric's name | 200 bytes, but for a number that makes it unique |
//! | a read | the exporter's deadline, that of the kernel included |
//! | the kernel's events | 64, with names of 128 characters |
//! | reads of a guest | one in [`MIN_INTERVAL`] at most |
//! | a scrape that waits for first reads | the exporter's deadline, or 9/10 of the scraper's timeout if that is less, but 100 ms at least |
//! | building pages | a fifth of the time: one is sent for four times as long as it took to build it, and for 100 ms at least, unless a guest came or went |
//! | scrapers at a time | [`MAX_SCRAPERS`], and fewer where the process may not have a descriptor for each and for each guest; however many guests there are, 3; one more replaces one that has closed, that has not sent its request, or that has read nothing for 100 ms, of the host that has most of these, or is answered 503 |
//! | memory of a guest | its description, metrics and newest series, which are bounded by the 256 KiB of an answer and the bounds above, 10 MiB at most, and 6 MiB at most of each page |
//! | pages at a time | 8, which scrapers share; those that still read the oldest are closed for one more |
//! | a request | 8 KiB, 64 headers and 5 s, with the TLS handshake before it |
//! | a password | its bcrypt hash is computed on another thread, one at a time, for each host after the other, and remembered; who waits 5 s for it is answered 503 |
//! | a scraper that does not read its response | closed after 2 s without a byte, or 10 s |
//! | kernel memory of a scraper | 256 KiB to send, 32 KiB to receive |

mod accept;
mod access;
mod clock;
mod description;
mod exporter;
mod exposition;
mod http;
mod kernel;
mod metrics;
mod names;
mod page;
#[cfg(feature = "tls")]
mod passwords;
mod scraper;
mod stream;
mod sums;
mod target;
#[cfg(feature = "tls")]
mod tls_stream;
mod values;
#[cfg(feature = "tls")]
mod web_config;

pub use clock::MIN_INTERVAL;
pub use exporter::{DEFAULT_INTERVAL, Exporter, MAX_SCRAPERS};
pub use metrics::MAX_METRICS;
pub use values::MAX_SERIES;
#[cfg(feature = "tls")]
pub use web_config::{WebConfig, WebConfigError};
