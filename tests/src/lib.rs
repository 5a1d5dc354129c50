//! Fixtures of the integration tests: simulated guest driver, stand-in schedulers, guests.
