//! The part of HTTP/1.1 that a scrape needs: one request a connection, and its response.

use std::time::Duration;

use httparse::{EMPTY_HEADER, Error, Header, Request, Status};

/// Bytes of the longest request.
pub(super) const MAX_REQUEST: usize = 8 * 1024;

/// Headers of the longest request.
const MAX_HEADERS: usize = 64;

/// How much of the time that a scraper waits is used: the page must travel as well.
const USED: f64 = 0.9;

/// What guests are given at least: a scraper that waits for less must not keep others from their numbers.
pub(super) const LEAST: Duration = Duration::from_millis(100);

/// What a scraper wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wanted {
    /// OpenMetrics, or Prometheus' older text.
    pub(super) open_metrics: bool,
    /// How long it may be kept waiting, where it says so.
    pub(super) within: Option<Duration>,
    /// Only the response's head.
    pub(super) head_only: bool,
}

/// What came by now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Parsed {
    /// More must come.
    Part,
    /// A scrape.
    Scrape(Wanted),
    /// Something else, which is answered with this status.
    Refused(&'static str),
}

pub(super) const BAD_REQUEST: &str = "400 Bad Request";
pub(super) const NOT_FOUND: &str = "404 Not Found";
pub(super) const NOT_ALLOWED: &str = "405 Method Not Allowed";
pub(super) const TIMED_OUT: &str = "408 Request Timeout";
pub(super) const TOO_LARGE: &str = "431 Request Header Fields Too Large";
pub(super) const FAILED: &str = "500 Internal Server Error";
pub(super) const BUSY: &str = "503 Service Unavailable";

/// Parses what came by now.
pub(super) fn parse(received: &[u8]) -> Parsed {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(received) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if received.len() < MAX_REQUEST => return Parsed::Part,
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Parsed::Refused(TOO_LARGE),
        Err(_) => return Parsed::Refused(BAD_REQUEST),
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Parsed::Refused(NOT_ALLOWED),
    };
    let path = request.path.unwrap_or_default();
    if path.split('?').next() != Some("/metrics") {
        return Parsed::Refused(NOT_FOUND);
    }
    let header = |name: &str| text(request.headers, name);
    Parsed::Scrape(Wanted {
        open_metrics: header("Accept").is_some_and(|accept| accept.contains("application/openmetrics-text")),
        within: header("X-Prometheus-Scrape-Timeout-Seconds").and_then(time),
        head_only,
    })
}

fn text<'h>(headers: &[Header<'h>], name: &str) -> Option<&'h str> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok()
}

fn time(seconds: &str) -> Option<Duration> {
    let within = Duration::try_from_secs_f64(seconds.trim().parse::<f64>().ok()? * USED).ok()?;
    Some(within.max(LEAST))
}

/// A page as a response.
pub(super) fn page(media_type: &str, page: &str, head_only: bool) -> Vec<u8> {
    respond("200 OK", media_type, page, head_only)
}

/// A status as a response.
pub(super) fn status(status: &str) -> Vec<u8> {
    let more = if status == NOT_FOUND { "; the metrics are at /metrics" } else { "" };
    respond(status, "text/plain; charset=utf-8", &format!("{status}{more}\n"), false)
}

fn respond(status: &str, media_type: &str, body: &str, head_only: bool) -> Vec<u8> {
    let allow = if status == NOT_ALLOWED { "Allow: GET, HEAD\r\n" } else { "" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n"
    );
    [head.as_bytes(), if head_only { b"" } else { body.as_bytes() }].concat()
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
    fn a_scrape_of_prometheus_is_understood() {
        let within = Some(Duration::from_secs(9));
        assert_eq!(
            parse(PROMETHEUS.as_bytes()),
            Parsed::Scrape(Wanted { open_metrics: true, within, head_only: false })
        );
        let plain = Parsed::Scrape(Wanted { open_metrics: false, within: None, head_only: false });
        assert_eq!(parse(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"), plain);
        for end in 1..PROMETHEUS.len() {
            assert_eq!(parse(&PROMETHEUS.as_bytes()[..end]), Parsed::Part, "{end}");
        }
    }

    #[test]
    fn what_is_no_scrape_is_refused() {
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(MAX_REQUEST));
        for (request, expected) in [
            ("POST /metrics HTTP/1.1\r\n\r\n", NOT_ALLOWED),
            ("GET / HTTP/1.1\r\n\r\n", NOT_FOUND),
            ("GET /metrics HTTP/2.0\r\n\r\n", BAD_REQUEST),
            ("\0", BAD_REQUEST),
            ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", BAD_REQUEST),
            (&many, TOO_LARGE),
            (&long, TOO_LARGE),
        ] {
            assert_eq!(parse(request.as_bytes()), Parsed::Refused(expected), "{request:.40}");
        }
        for header in ["-1", "NaN", "inf", "1e300", "x", ""] {
            let request = format!("GET /metrics HTTP/1.1\r\nX-Prometheus-Scrape-Timeout-Seconds: {header}\r\n\r\n");
            let Parsed::Scrape(wanted) = parse(request.as_bytes()) else { panic!("{header}") };
            assert_eq!(wanted.within, None, "{header}");
        }
    }

    #[test]
    fn a_scraper_that_does_not_wait_is_made_to() {
        let request = b"GET /metrics HTTP/1.1\r\nx-prometheus-scrape-timeout-seconds: 0\r\n\r\n";
        assert!(matches!(parse(request), Parsed::Scrape(Wanted { within: Some(LEAST), .. })));
    }

    #[test]
    fn responses_are_complete() {
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
        assert_eq!(page("text/x", "a\n", false), format!("{expected}a\n").into_bytes());
        assert_eq!(page("text/x", "a\n", true), expected.as_bytes());
        assert!(String::from_utf8(status(NOT_ALLOWED)).unwrap().contains("\r\nAllow: GET, HEAD\r\n"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
