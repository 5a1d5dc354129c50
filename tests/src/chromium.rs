//! Chromium without a window, driven over a pipe by its DevTools protocol: JSON texts that end in a zero byte.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A page in a browser, which ends with it.
pub struct Page {
    browser: Child,
    requests: PipeWriter,
    messages: BufReader<PipeReader>,
    last_id: u64,
    session: String,
    /// The events of the page so far.
    pub events: Vec<Value>,
    _profile: TempDir,
}

/// What a browser window is like.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Pixels of its width.
    pub width: u32,
    /// Whether its user prefers dark pages.
    pub is_dark: bool,
}

impl Page {
    /// Opens an empty page.
    pub fn open() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let (their_requests, requests) = pipe().unwrap();
        let (messages, their_messages) = pipe().unwrap();
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]);
        // What the browser itself would ask the network for.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mapping = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };
        command.fd_mappings(vec![mapping(their_requests.into(), 3), mapping(their_messages.into(), 4)]).unwrap();
        let browser = command.spawn().expect("chromium runs; ci/test report installs it");
        drop(command);
        let (messages, session, events) = (BufReader::new(messages), String::new(), Vec::new());
        let mut page = Self { browser, requests, messages, last_id: 0, session, events, _profile: profile };
        let target = page.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        page.session = page.call("Target.attachToTarget", target)["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page
    }

    /// Loads an address in a window, and waits until all of it is there.
    pub fn load(&mut self, address: &str, window: Window) {
        let metrics =
            json!({ "width": window.width, "height": 800, "deviceScaleFactor": 1, "mobile": window.width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if window.is_dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.events.clear();
        self.call("Page.navigate", json!({ "url": address }));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            self.receive();
        }
    }

    /// Returns what an expression of JavaScript is on the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert_eq!(result["exceptionDetails"], Value::Null, "{expression}");
        result["result"]["value"].clone()
    }

    /// The events of this kind since the page was loaded.
    pub fn events_of(&self, method: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["method"] == method).map(|event| &event["params"]).collect()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut request = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        self.requests.write_all(format!("{request}\0").as_bytes()).unwrap();
        loop {
            if let Some(mut answer) = self.receive().filter(|answer| answer["id"] == id) {
                assert_eq!(answer["error"], Value::Null, "{method}");
                return answer["result"].take();
            }
        }
    }

    /// Reads a message. An event is kept, an answer returned.
    fn receive(&mut self) -> Option<Value> {
        let mut bytes = Vec::new();
        self.messages.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "chromium ended");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        if message["id"].is_null() {
            self.events.push(message);
            return None;
        }
        Some(message)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ended_already = self.browser.kill();
        let _status = self.browser.wait();
    }
}
