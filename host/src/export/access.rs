//! Who may scrape, and how their connections are protected: everybody in the clear, unless a web configuration says more.

#[cfg(feature = "tls")]
use std::io;
#[cfg(feature = "tls")]
use std::net::IpAddr;
use std::os::fd::OwnedFd;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;
#[cfg(feature = "tls")]
use rustls::ServerConfig;

#[cfg(feature = "tls")]
use super::http;
#[cfg(feature = "tls")]
use super::passwords::{Passwords, Verdict};
use super::scraper::Scraper;
use super::stream::ScraperStream;
#[cfg(feature = "tls")]
use super::tls_stream::TlsStream;
#[cfg(feature = "tls")]
use super::web_config::WebConfig;
use crate::io::poll::PollSet;

#[derive(Debug, Default)]
pub(super) struct Access {
    #[cfg(feature = "tls")]
    tls: Option<Arc<ServerConfig>>,
    #[cfg(feature = "tls")]
    passwords: Option<Passwords>,
    /// The host whose password was checked last.
    #[cfg(feature = "tls")]
    latest: Option<IpAddr>,
}

#[cfg(not(feature = "tls"))]
impl Access {
    pub(super) fn stream(&self, connection: OwnedFd) -> Option<ScraperStream> {
        Some(ScraperStream::Plain(connection.into()))
    }

    pub(super) fn needs_password(&self) -> bool {
        false
    }

    pub(super) fn register<'a>(&'a self, _set: &mut PollSet<'a>) {}

    pub(super) fn on_events(&mut self, _events: &mut impl Iterator<Item = PollFlags>) {}

    pub(super) fn decide(&mut self, _scrapers: &mut [Scraper], _now: Instant) {}
}

#[cfg(feature = "tls")]
impl Access {
    /// # Errors
    ///
    /// If there is no thread or descriptor to check passwords with.
    pub(super) fn new(config: WebConfig) -> io::Result<Self> {
        let passwords = config.has_users().then(|| Passwords::new(config.users)).transpose()?;
        Ok(Self { tls: config.tls, passwords, latest: None })
    }

    /// Returns the stream of a new connection; `None` if it cannot be protected.
    pub(super) fn stream(&self, connection: OwnedFd) -> Option<ScraperStream> {
        match &self.tls {
            None => Some(ScraperStream::Plain(connection.into())),
            Some(config) => {
                let tls = TlsStream::new(connection.into(), Arc::clone(config)).ok()?;
                Some(ScraperStream::Tls(Box::new(tls)))
            }
        }
    }

    pub(super) fn needs_password(&self) -> bool {
        self.passwords.is_some()
    }

    /// Adds the descriptor that is readable when a password was checked.
    pub(super) fn register<'a>(&'a self, set: &mut PollSet<'a>) {
        self.passwords.iter().for_each(|passwords| passwords.register(set));
    }

    pub(super) fn on_events(&mut self, events: &mut impl Iterator<Item = PollFlags>) {
        let Some(passwords) = &mut self.passwords else { return };
        if events.next().is_some_and(|event| !event.is_empty()) {
            passwords.on_event();
        }
    }

    /// Grants or denies the metrics to scrapers whose password is known, and begins to check one of the others.
    pub(super) fn decide(&mut self, scrapers: &mut [Scraper], now: Instant) {
        let Some(passwords) = &mut self.passwords else { return };
        for scraper in scrapers.iter_mut() {
            match scraper.ungranted().map(|(_, authorization)| passwords.verdict(authorization)) {
                Some(Verdict::Granted) => scraper.grant(),
                Some(Verdict::Refused) => scraper.deny(http::UNAUTHORIZED, now),
                Some(Verdict::Pending) | None => {}
            }
        }
        if !passwords.is_idle() {
            return;
        }
        // One host alone cannot keep others from being checked: after its password comes that of another.
        let waiting = scrapers.iter().filter_map(|scraper| Some((scraper, scraper.ungranted()?)));
        let next = waiting.min_by_key(|(scraper, (since, _))| (scraper.host() == self.latest, *since));
        if let Some((scraper, (_, Some(authorization)))) = next {
            self.latest = scraper.host();
            passwords.check(authorization);
        }
    }
}
