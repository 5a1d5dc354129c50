//! The part of HTTP/1.1 that a scrape needs: one request a connection, and its response.

use std::time::Duration;

use httparse::{EMPTY_HEADER, Error, Header, Request, Status};

use super::accept::prefers_open_metrics;
use super::exposition::Form;

/// Bytes of the longest request.
pub(super) const MAX_REQUEST: usize = 8 * 1024;

/// Headers of the longest request.
const MAX_HEADERS: usize = 64;

/// The part of a scraper's timeout that targets have: the response must travel as well.
const TIMEOUT_PART: f64 = 0.9;

/// The least that targets have: a scraper with a shorter timeout must not keep others from their numbers.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(100);

/// The most that a scraper's timeout counts.
const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// A scraper's request for the metrics.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ScrapeRequest {
    pub(super) form: Form,
    /// How long targets have, if the scraper has a timeout.
    pub(super) timeout: Option<Duration>,
    /// Only the head of the response.
    pub(super) head_only: bool,
    /// The value of the header that says who it is.
    pub(super) authorization: Option<Vec<u8>>,
}

/// What has arrived.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Parsed {
    /// A part of a request.
    Incomplete,
    /// A request for the metrics.
    Scrape(ScrapeRequest),
    /// Something else.
    Rejected(Rejection),
}

/// A response without metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) status: &'static str,
    /// Only the head of the response.
    pub(super) head_only: bool,
}

impl Rejection {
    pub(super) fn new(status: &'static str) -> Self {
        Self { status, head_only: false }
    }
}

pub(super) const BAD_REQUEST: &str = "400 Bad Request";
pub(super) const UNAUTHORIZED: &str = "401 Unauthorized";
pub(super) const NOT_FOUND: &str = "404 Not Found";
pub(super) const NOT_ALLOWED: &str = "405 Method Not Allowed";
pub(super) const TIMED_OUT: &str = "408 Request Timeout";
pub(super) const TOO_LARGE: &str = "431 Request Header Fields Too Large";
pub(super) const FAILED: &str = "500 Internal Server Error";
pub(super) const BUSY: &str = "503 Service Unavailable";

/// Parses what has arrived.
pub(super) fn parse(received: &[u8]) -> Parsed {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(received) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if received.len() < MAX_REQUEST => return Parsed::Incomplete,
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Parsed::Rejected(Rejection::new(TOO_LARGE)),
        Err(_) => return Parsed::Rejected(Rejection::new(BAD_REQUEST)),
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Parsed::Rejected(Rejection::new(NOT_ALLOWED)),
    };
    if path(request.path.unwrap_or_default()) != "/metrics" {
        return Parsed::Rejected(Rejection { status: NOT_FOUND, head_only });
    }
    let open_metrics = prefers_open_metrics(values(request.headers, "Accept"));
    Parsed::Scrape(ScrapeRequest {
        form: if open_metrics { Form::OpenMetrics } else { Form::Plain },
        timeout: values(request.headers, "X-Prometheus-Scrape-Timeout-Seconds").next().and_then(timeout),
        head_only,
        authorization: authorization(request.headers),
    })
}

/// The path of a request's target, which may be a whole URI (RFC 9112, 3.2.2).
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find('/').and_then(|start| rest.get(start..)).unwrap_or("/")
        }
        _ => target,
    };
    path.split('?').next().unwrap_or_default()
}

fn authorization(headers: &[Header<'_>]) -> Option<Vec<u8>> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case("Authorization"));
    header.map(|header| header.value.to_vec())
}

/// The values of all headers of this name.
fn values<'h>(headers: &[Header<'h>], name: &str) -> impl Iterator<Item = &'h str> {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.filter_map(|header| std::str::from_utf8(header.value).ok())
}

/// The bounded time that targets have, from a scraper's timeout in seconds.
fn timeout(seconds: &str) -> Option<Duration> {
    let seconds = seconds.trim().parse::<f64>().ok()?;
    // Also what is beyond the range of a duration; a negative number and NaN are none.
    let bounded = if seconds > MAX_TIMEOUT.as_secs_f64() { MAX_TIMEOUT.as_secs_f64() } else { seconds };
    let timeout = Duration::try_from_secs_f64(bounded * TIMEOUT_PART).ok()?;
    Some(timeout.max(MIN_TIMEOUT))
}

/// Returns the head of the response with a page of so many bytes.
pub(super) fn ok(form: Form, length: usize) -> String {
    head("200 OK", form.media_type(), length)
}

/// Returns the whole response of a rejection.
pub(super) fn rejection(rejection: Rejection) -> String {
    let status = rejection.status;
    let more = if status == NOT_FOUND { "; the metrics are at /metrics" } else { "" };
    let body = format!("{status}{more}\n");
    let head = head(status, "text/plain; charset=utf-8", body.len());
    if rejection.head_only { head } else { head + &body }
}

fn head(status: &str, media_type: &str, length: usize) -> String {
    let more = match status {
        NOT_ALLOWED => "Allow: GET, HEAD\r\n",
        UNAUTHORIZED => "WWW-Authenticate: Basic realm=\"metrics\", charset=\"UTF-8\"\r\n",
        _ => "",
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Prometheus 2.42 sends.
    const PROMETHEUS: &str = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9729\r\nUser-Agent: Prometheus/2.42.0\r\n\
        Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
        text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\nAccept-Encoding: gzip\r\n\
        X-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n";

    #[test]
    fn a_scrape_of_prometheus_is_parsed() {
        let timeout = Some(Duration::from_secs(9));
        assert_eq!(
            parse(PROMETHEUS.as_bytes()),
            Parsed::Scrape(ScrapeRequest { form: Form::OpenMetrics, timeout, head_only: false, authorization: None })
        );
        let plain =
            Parsed::Scrape(ScrapeRequest { form: Form::Plain, timeout: None, head_only: false, authorization: None });
        for target in ["/metrics?x=1", "http://127.0.0.1:9729/metrics", "http://host/metrics?next=http://other/"] {
            assert_eq!(parse(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()), plain, "{target}");
        }
        for end in 1..PROMETHEUS.len() {
            assert_eq!(parse(&PROMETHEUS.as_bytes()[..end]), Parsed::Incomplete, "{end}");
        }
    }

    #[test]
    fn who_scrapes_is_parsed() {
        let request = b"GET /metrics HTTP/1.1\r\nauthorization: Basic YTpi\r\n\r\n";
        let Parsed::Scrape(scrape) = parse(request) else { panic!("it is a scrape") };
        assert_eq!(scrape.authorization.as_deref(), Some(&b"Basic YTpi"[..]));
        assert!(rejection(Rejection::new(UNAUTHORIZED)).contains("\r\nWWW-Authenticate: Basic realm="));
    }

    #[test]
    fn what_is_no_scrape_is_rejected() {
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(MAX_REQUEST));
        for (request, expected) in [
            ("POST /metrics HTTP/1.1\r\n\r\n", NOT_ALLOWED),
            ("GET / HTTP/1.1\r\n\r\n", NOT_FOUND),
            ("GET http://metrics HTTP/1.1\r\n\r\n", NOT_FOUND),
            ("GET /x://y/metrics HTTP/1.1\r\n\r\n", NOT_FOUND),
            ("GET /metrics HTTP/2.0\r\n\r\n", BAD_REQUEST),
            ("\0", BAD_REQUEST),
            ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", BAD_REQUEST),
            (&many, TOO_LARGE),
            (&long, TOO_LARGE),
        ] {
            assert_eq!(parse(request.as_bytes()), Parsed::Rejected(Rejection::new(expected)), "{request:.40}");
        }
        for header in ["-1", "NaN", "-inf", "x", ""] {
            let request = format!("GET /metrics HTTP/1.1\r\nX-Prometheus-Scrape-Timeout-Seconds: {header}\r\n\r\n");
            let Parsed::Scrape(scrape) = parse(request.as_bytes()) else { panic!("{header}") };
            assert_eq!(scrape.timeout, None, "{header}");
        }
    }

    #[test]
    fn a_scraper_without_patience_has_the_least_timeout() {
        let request = b"GET /metrics HTTP/1.1\r\nx-prometheus-scrape-timeout-seconds: 0\r\n\r\n";
        assert!(matches!(parse(request), Parsed::Scrape(ScrapeRequest { timeout: Some(MIN_TIMEOUT), .. })));
    }

    #[test]
    fn every_timeout_is_bounded() {
        for seconds in ["10248191152060854272", "18446744073709551615", "1e300", "inf", "3601"] {
            assert_eq!(timeout(seconds), Some(Duration::from_secs(3_240)), "{seconds}");
        }
    }

    #[test]
    fn responses_are_complete() {
        let head = ok(Form::OpenMetrics, 2);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; "), "{head}");
        assert!(head.ends_with("\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"), "{head}");
        assert!(rejection(Rejection::new(NOT_ALLOWED)).contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(rejection(Rejection::new(BUSY)).ends_with("\r\n\r\n503 Service Unavailable\n"));
    }

    #[test]
    fn a_head_request_never_has_a_body() {
        let Parsed::Rejected(unknown) = parse(b"HEAD /nothing HTTP/1.1\r\n\r\n") else { panic!("it is unknown") };
        let response = rejection(unknown);
        assert!(response.starts_with("HTTP/1.1 404 ") && response.ends_with("\r\n\r\n"), "{response}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
