//! The time that vsock adds to a request to a QEMU guest, against vhost-device-vsock with socat, a virtio-serial port with a
//! relay, and an echo through vhost-device-vsock.

use crate::measure::{Bench, Measure};
use crate::measured_guests::{OurGuest, PeerGuest};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[Measure {
    name: "added-latency",
    is_quick: false,
    bound: "Two crossings of QEMU's main loop, which an emulated guest shares with its processors' threads, and two wake-ups \
            in the guest: of its vsock driver and of the agent. The echo has all of that but the agent and its socket to the \
            scheduler.",
    rows: added_latency,
}];

/// The number of round trips of one measurement.
const TIMES: usize = 300;

/// The number of measurements, whose median counts: an emulated guest does not run evenly.
const ROUNDS: usize = 7;

/// Bytes of an answer.
const ANSWER: usize = 600;

/// Both guests run at the same time, and are measured in turn; the one that is not measured is idle.
fn added_latency(bench: &Bench) -> Vec<Row> {
    let (our_guest, peer_guest) = (OurGuest::boot(), PeerGuest::boot(bench));
    let (mut ours, mut theirs, mut serial, mut echo) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs(ROUNDS) {
        ours.push(our_guest.round_trip(ANSWER, TIMES) - our_guest.inside(ANSWER, TIMES));
        let inside = peer_guest.inside(ANSWER, TIMES);
        theirs.push(peer_guest.round_trip(ANSWER, TIMES) - inside);
        serial.push(peer_guest.serial_round_trip(ANSWER, TIMES) - inside);
        echo.push(peer_guest.echo(TIMES));
    }
    let [peer, serial_peer, floor] = [
        "time added by vsock / by vhost-device-vsock + socat, us",
        "time added by vsock / by virtio-serial + std relay, us",
        "time added by vsock / an echo through vhost-device-vsock, us",
    ];
    vec![
        Row::median(peer, &mut ours, &mut theirs, Goal::Ratio(0.5)),
        Row::median(serial_peer, &mut ours, &mut serial, Goal::Ratio(1.0)),
        Row::median(floor, &mut ours, &mut echo, Goal::Ratio(1.3)),
    ]
}
