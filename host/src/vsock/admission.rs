//! Who gets a place in the device: places that the guest cannot take, and how many it has at each port.

use std::collections::HashMap;
use std::time::Instant;

use super::counters::Refusal;
use super::limits::{MAX_CONNECTIONS, RESERVED_CONNECTIONS};
use super::policy::GuestPolicy;
use super::token_bucket::TokenBucket;

/// Who asked for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The host.
    Host,
    /// The guest, for this port of the host.
    Guest {
        /// The host's port.
        port: u32,
    },
}

/// The places that are taken.
#[derive(Debug, Default)]
pub struct Admission {
    total: usize,
    of_guest: usize,
    /// Those of the guest, by port of the host; none is zero.
    of_port: HashMap<u32, usize>,
    rate: TokenBucket,
}

impl Admission {
    /// Returns what is full, if there is no place for another connection of this origin.
    pub fn shortage(&self, origin: Origin, policy: &GuestPolicy) -> Option<Refusal> {
        if let Origin::Guest { port } = origin {
            if self.of_port.get(&port).is_some_and(|&taken| taken >= policy.most_of_a_port()) {
                return Some(Refusal::PortFull);
            }
            if self.of_guest >= MAX_CONNECTIONS - RESERVED_CONNECTIONS {
                return Some(Refusal::GuestFull);
            }
        }
        (self.total >= MAX_CONNECTIONS).then_some(Refusal::TableFull)
    }

    /// Whether the policy lets the guest connect to this port now. A connect that it does counts for its rate.
    pub fn permits(&mut self, port: u32, policy: &GuestPolicy, now: Instant) -> Result<(), Refusal> {
        if !policy.allows(port) {
            return Err(Refusal::NotAllowed);
        }
        let Some(rate) = policy.rate() else { return Ok(()) };
        self.rate.refill(rate, rate, now);
        if self.rate.take() { Ok(()) } else { Err(Refusal::TooFast) }
    }

    /// Takes a place.
    pub fn enter(&mut self, origin: Origin) {
        self.total += 1;
        if let Origin::Guest { port } = origin {
            self.of_guest += 1;
            *self.of_port.entry(port).or_default() += 1;
        }
    }

    /// Gives a place back.
    pub fn leave(&mut self, origin: Origin) {
        self.total = self.total.saturating_sub(1);
        if let Origin::Guest { port } = origin {
            self.of_guest = self.of_guest.saturating_sub(1);
            if let Some(taken) = self.of_port.get_mut(&port) {
                *taken = taken.saturating_sub(1);
                if *taken == 0 {
                    self.of_port.remove(&port);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn filled(policy: &GuestPolicy, origins: impl Iterator<Item = Origin>) -> (Admission, usize) {
        let mut admission = Admission::default();
        let mut entered = 0;
        for origin in origins {
            if admission.shortage(origin, policy).is_none() {
                admission.enter(origin);
                entered += 1;
            }
        }
        (admission, entered)
    }

    #[test]
    fn a_port_has_256_connections_and_other_ports_have_theirs() {
        let policy = GuestPolicy::default();
        let of = |port| Origin::Guest { port };
        let (mut admission, entered) = filled(&policy, std::iter::repeat_n(of(1), 300));
        assert_eq!((entered, admission.shortage(of(1), &policy)), (256, Some(Refusal::PortFull)));
        assert_eq!(admission.shortage(of(2), &policy), None);
        admission.leave(of(1));
        assert_eq!(admission.shortage(of(1), &policy), None);
        assert_eq!(filled(&policy.connections_per_port(3), std::iter::repeat_n(of(1), 300)).1, 3);
    }

    #[test]
    fn a_guest_leaves_64_places_to_the_host() {
        let policy = GuestPolicy::default();
        let (mut admission, entered) = filled(&policy, (0..2000).map(|index| Origin::Guest { port: index / 100 }));
        assert_eq!(entered, 960);
        assert_eq!(admission.shortage(Origin::Guest { port: 100 }, &policy), Some(Refusal::GuestFull));
        for _ in 0..64 {
            assert_eq!(admission.shortage(Origin::Host, &policy), None);
            admission.enter(Origin::Host);
        }
        assert_eq!(admission.shortage(Origin::Host, &policy), Some(Refusal::TableFull));
        admission.leave(Origin::Guest { port: 0 });
        assert_eq!(admission.shortage(Origin::Host, &policy), None);
    }

    #[test]
    fn a_host_may_have_every_place() {
        let policy = GuestPolicy::default();
        let (admission, entered) = filled(&policy, std::iter::repeat_n(Origin::Host, 2000));
        assert_eq!(entered, 1024);
        assert_eq!(admission.shortage(Origin::Guest { port: 1 }, &policy), Some(Refusal::TableFull));
    }

    #[test]
    fn all_that_enter_and_leave_leave_nothing() {
        let mut admission = Admission::default();
        for origin in [Origin::Host, Origin::Guest { port: 7 }] {
            admission.enter(origin);
            admission.leave(origin);
        }
        assert_eq!((admission.total, admission.of_guest, admission.of_port.len()), (0, 0, 0));
    }

    #[test]
    fn a_policy_names_ports_and_a_rate() {
        let policy = GuestPolicy::default().ports([1, 2]).connects_per_second(2);
        let mut admission = Admission::default();
        let now = Instant::now();
        assert_eq!(admission.permits(3, &policy, now), Err(Refusal::NotAllowed));
        assert_eq!(admission.permits(1, &policy, now), Ok(()));
        assert_eq!(admission.permits(2, &policy, now), Ok(()));
        assert_eq!(admission.permits(1, &policy, now), Err(Refusal::TooFast));
        assert_eq!(admission.permits(1, &policy, now + Duration::from_millis(500)), Ok(()));
        assert_eq!(admission.permits(1, &policy, now + Duration::from_millis(501)), Err(Refusal::TooFast));
        // What was not used is not saved up beyond a second's.
        let later = now + Duration::from_secs(60);
        let taken = (0..10).filter(|_| admission.permits(1, &policy, later).is_ok()).count();
        assert_eq!(taken, 2);
    }
}
