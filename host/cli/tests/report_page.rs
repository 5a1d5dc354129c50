//! The page of `scx-vsock report` in Chromium: it loads nothing, nothing fails, and everything fits its window.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use scx_vsock_tests::chromium::{Page, Window};
use serde_json::{Value, json};

/// Text that would act on a page, and a name that is as long as a line of it.
const HOSTILE: &str = "</title></style><script>alert(1)</script>\"'\u{202e}";
const LONG: &str =
    "a_name_without_an_end_that_is_longer_than_a_phone_is_wide_and_has_no_place_to_break_xxxxxxxxxxxxxxxxxxx";

/// A sample of a run whose scheduler is ejected in the middle.
fn sample(run: u64, at: u64) -> Value {
    let wave = ((at as f64 / 9.0).sin() + 1.0) * 20.0 + (run * 12) as f64 + ((at * 7919 + run * 31) % 11) as f64;
    let stats = json!({
        "nr_running": wave.round(), "spike": if at == 77 { 900 } else { 3 }, "total": at * 1000 * (run + 1), "constant": 2,
        "layers": { "batch": { "util": wave / 100.0 }, HOSTILE: { "x": at % 5 } }, LONG: at,
    });
    let missing = if at < 40 {
        json!({ "TimedOut": { "after_ms": 1000 } })
    } else {
        json!({ "SchedulerGone": { "errno": 0, "cause": HOSTILE } })
    };
    let is_missing = (30..36).contains(&at) || (60..66).contains(&at);
    json!({
        "tag": "t", "elapsed_ms": at * 100 + 7, "session": if at < 66 { 1 } else { 2 }, "interval_ms": 100,
        "stats": if is_missing { json!({ "Err": missing }) } else { json!({ "Ok": stats }) },
        "kernel": { "Ok": {
            "state": "enabled", "ops": "bpfland_1.1.4_x86_64_unknown_linux_gnu", "enable_seq": if at < 66 { "1" } else { "2" },
            "uptime_us": at, "events": { "SCX_EV_SELECT_CPU_FALLBACK": (at / 3).to_string(), "SCX_EV_BYPASS_ACTIVATE": "1" },
            "log": [{ "time_us": 9_120_627, "text": format!("sched_ext: BPF scheduler \"x\" disabled ({HOSTILE})") }],
        } },
    })
}

/// Makes a page of four recordings of each of two runs.
fn make(folder: &Path) -> PathBuf {
    let mut arguments = Vec::new();
    for recording in 0..8 {
        let name = format!("{}={recording}.jsonl", if recording < 4 { "old" } else { "\"'<b>new\u{202e}" });
        let lines: String = (0..100).map(|at| format!("{}\n", sample(recording, at))).collect();
        fs::write(folder.join(format!("{recording}.jsonl")), lines).unwrap();
        arguments.push(name);
    }
    let page = folder.join("report.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command
        .arg("report")
        .args(arguments)
        .args(["--expect", "nr_running <= 64", "--expect", "holes(stats) <= 40", "-o"])
        .arg(&page);
    let output = command.current_dir(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    page
}

/// Whether something is wider than the window and does not scroll by itself.
const OVERFLOW: &str = "document.documentElement.scrollWidth - document.documentElement.clientWidth";

/// The sizes of the plots: the least width and height, and how many there are.
const PLOTS: &str =
    "(() => { const all = [...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect());
    return [all.length, Math.min(...all.map(box => box.width)), Math.min(...all.map(box => box.height))]; })()";

/// The colours of the first line and of the page.
const COLOURS: &str = "[getComputedStyle(document.querySelector('figure polyline[stroke=\"#100000\"]')).stroke,
    getComputedStyle(document.documentElement).backgroundColor]";

/// The least contrast of text and what is behind it, as the Web Content Accessibility Guidelines define it.
const CONTRAST: &str = "(() => {
    const parse = text => text.match(/[0-9.]+/g).map(Number);
    const light = rgb => { const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = element => { for (; element; element = element.parentElement) {
        const colour = parse(getComputedStyle(element).backgroundColor); if (colour.length < 4 || colour[3] > 0) return colour; }
        return [255, 255, 255]; };
    const of = element => { const style = getComputedStyle(element);
        const [one, other] = [light(parse(element instanceof SVGElement ? style.fill : style.color).slice(0, 3)), light(behind(element).slice(0, 3))];
        return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05); };
    return Math.min(...[...document.querySelectorAll('p, td, th, li, code, a, h1, h2, h3, .badge, .spread, figure text')].map(of)); })()";

#[test]
#[ignore = "runs Chromium; run ci/test report"]
fn chromium_shows_the_page() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let address = format!("file://{}", make(folder.path()).display());
    let mut page = Page::open();
    let mut colours = Vec::new();
    for (width, is_dark) in [(1400, false), (1400, true), (390, false), (320, true)] {
        page.load(&address, Window { width, is_dark });
        let window = format!("{width} px, dark: {is_dark}");
        assert_eq!(page.evaluate(OVERFLOW), 0, "{window}");
        let plots = page.evaluate(PLOTS);
        let (count, least_width, least_height) =
            (plots[0].as_u64().unwrap(), plots[1].as_f64().unwrap(), plots[2].as_f64().unwrap());
        assert!(count >= 8 && least_width > 250.0 && least_height > 100.0, "{window}: {plots}");
        let contrast = page.evaluate(CONTRAST).as_f64().unwrap();
        assert!(contrast >= 4.5, "{window}: {contrast}");
        colours.push(page.evaluate(COLOURS));
        assert_eq!(page.evaluate("document.title.startsWith('Report: old, ') && document.scripts.length === 0"), true);
        assert_eq!(page.events_of("Runtime.consoleAPICalled"), [] as [&Value; 0], "{window}");
        assert_eq!(page.events_of("Runtime.exceptionThrown"), [] as [&Value; 0], "{window}");
        assert_eq!(page.events_of("Log.entryAdded"), [] as [&Value; 0], "{window}");
        let requested = page.events_of("Network.requestWillBeSent");
        let others: Vec<_> = requested
            .iter()
            .map(|event| &event["request"]["url"])
            .filter(|url| !url.as_str().unwrap().starts_with("data:"))
            .collect();
        assert_eq!(others, [&json!(address)], "{window}");
    }
    assert_ne!(colours[0], colours[1]);
    assert_eq!((&colours[0], &colours[1]), (&colours[2], &colours[3]));
}
