//! The endpoints against what others wrote: vhost-device-vsock behind a QEMU, and the kernel's own AF_VSOCK in a guest.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use scx_vsock::{Endpoint, MAX_REQUEST_BYTES, SchedStatsClient};
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::guest::{TypedQemu, builder, output};
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::program;
use serde_json::Value;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

/// A guest whose device is vhost-device-vsock.
struct Foreign {
    device: BackEnd,
    _qemu: TypedQemu,
}

impl Foreign {
    fn boot() -> Self {
        let device = BackEnd::vhost_device_vsock();
        let guest = builder().scheduler(program::built("procsched"), &[]).initramfs().unwrap();
        let printed = format!("$({COMMAND} serve --socket {} --print-qemu-args)", device.socket().display());
        let qemu = TypedQemu::start(&guest, device.folder(), &printed);
        Self { device, _qemu: qemu }
    }

    fn hybrid(&self) -> PathBuf {
        self.device.hybrid()
    }

    fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(Endpoint::Hybrid { path: self.hybrid(), port: 729 }).deadline(DEADLINE).build()
    }

    fn ask(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let uri = format!("hybrid:{}", self.hybrid().display());
        let output = Command::new(COMMAND).arg(arguments[0]).arg(uri).args(&arguments[1..]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

#[test]
#[ignore = "boots a QEMU guest behind vhost-device-vsock; run ci/test peers"]
fn client_and_agent_work_over_vhost_device_vsock() {
    let guest = Foreign::boot();
    let (code, stats, errors) = guest.ask(&["stats", "--wait", "120", "--json"]);
    assert_eq!(code, Some(0), "{errors}");
    let before = serde_json::from_str::<Value>(&stats).unwrap()["totals"]["ctxt"].as_u64().unwrap();
    let (code, fields, errors) = guest.ask(&["meta", "--fields"]);
    assert!(code == Some(0) && fields.contains("delta.cpus.*.user\tu64\tTicks in user mode\n"), "{errors}");

    // One session carries many requests, sessions beside each other do not mix.
    let clients: Vec<SchedStatsClient> = (0..4).map(|_| guest.client()).collect();
    thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || {
                let mut last = before;
                for _ in 0..25 {
                    let now = client.stats(&[]).unwrap()["totals"]["ctxt"].as_u64().unwrap();
                    assert!(now >= last);
                    last = now;
                }
                assert_eq!(client.session(), 1);
            });
        }
    });
    // A request of the largest size is answered.
    let answer = guest.client().request_raw(vec![b'x'; MAX_REQUEST_BYTES - 1]).unwrap();
    assert!(String::from_utf8(answer).unwrap().contains("\"errno\":22"));

    // If nothing listens on the port in the guest, the device closes the connection.
    let uri = format!("hybrid:{}?port=5", guest.hybrid().display());
    let output = Command::new(COMMAND).args(["stats", &uri]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("before the VMM replied OK; is the guest up, and its agent started on port 5"), "{errors}");
    assert_eq!(output.status.code(), Some(21));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test peers"]
fn client_and_agent_work_over_af_vsock() {
    let guest = builder()
        .scheduler(program::built("procsched"), &[])
        .module("vsock_loopback")
        .agent_argument("--allow-cid")
        .agent_argument("1")
        .program(COMMAND, "/bin/scx-vsock")
        .boot()
        .unwrap();
    guest.client().wait_for_scheduler(3 * DEADLINE).unwrap();
    let stats: Value = serde_json::from_slice(&output(&guest, &["scx-vsock", "stats", "vsock://1", "--json"])).unwrap();
    assert!(stats["totals"]["ctxt"].as_u64() > Some(0), "{stats}");
    let fields = output(&guest, &["scx-vsock", "meta", "vsock://1:729", "--fields"]);
    assert!(String::from_utf8(fields).unwrap().contains("load.one\tfloat\tLoad average of one minute\n"));
    let plain = output(&guest, &["scx-vsock", "stats", "scx:/var/run/scx/root/stats", "--json"]);
    assert!(serde_json::from_slice::<Value>(&plain).unwrap()["totals"]["ctxt"].as_u64() > Some(0));
    for (uri, cause) in [("vsock://1:5", "Connection reset by peer"), ("vsock://99", "Connection timed out")] {
        let refused = guest.run(&["scx-vsock", "stats", uri, "--deadline", "5"]).unwrap();
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status == 21 && error.contains(cause), "{uri}: {} {error}", refused.status);
    }
}
