//! A page that is built once and sent to every scraper that it answers, and the bound on how many there are.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clock::{MIN_INTERVAL, after};
use super::exposition::{self, Form};
use super::target::Target;

/// How many times as long as it took to build a page it is sent although it is not the newest, so that guests and scrapers
/// cannot keep the thread busy.
const REST: u32 = 4;

/// Pages that are held at a time, the newest of each form included.
pub(super) const MAX_PAGES: usize = 8;

/// The metrics of all targets in one form.
pub(super) struct Page {
    pub(super) form: Form,
    pub(super) text: String,
    version: Version,
    built: Instant,
    took: Duration,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("form", &self.form).field("bytes", &self.text.len()).finish_non_exhaustive()
    }
}

/// What a page is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// The number of times that targets were added or removed.
    changes: u64,
    /// Whether no target keeps scrapers.
    is_complete: bool,
    /// The reads of targets that had ended.
    reads: u64,
}

impl Version {
    /// The version of these targets, which were added and removed so many times.
    pub(super) fn of(targets: &[Target], changes: u64) -> Self {
        let reads = targets.iter().fold(0, |sum: u64, target| sum.wrapping_add(target.reads));
        Self { changes, is_complete: !targets.iter().any(Target::keeps_scrapers), reads }
    }
}

impl Page {
    fn build(form: Form, targets: &[Target], version: Version) -> Result<Self, fmt::Error> {
        let built = Instant::now();
        let text = exposition::build(form, targets, built)?;
        Ok(Self { form, text, version, built, took: built.elapsed() })
    }

    fn next_at(&self) -> Instant {
        after(self.built, self.took.saturating_mul(REST).max(MIN_INTERVAL))
    }

    /// Whether it is the newest, or differs from that by reads alone and is not old.
    fn is_current(&self, version: Version, now: Instant) -> bool {
        let but_for_reads = Version { reads: self.version.reads, ..version };
        self.version == version || (self.version == but_for_reads && now < self.next_at())
    }
}

/// The pages that are held.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The newest of each form.
    newest: Vec<Arc<Page>>,
    /// All, in the order in which they were built.
    held: Vec<Weak<Page>>,
}

impl Pages {
    /// Returns the newest page of a form, if it need not be built anew.
    pub(super) fn current(&self, form: Form, version: Version, now: Instant) -> Option<Arc<Page>> {
        let newest = self.newest.iter().find(|page| page.form == form);
        newest.filter(|page| page.is_current(version, now)).cloned()
    }

    /// Returns the oldest page if no other can be built while it is held.
    pub(super) fn excess(&mut self) -> Option<Arc<Page>> {
        self.held.retain(|page| page.strong_count() > 0);
        let is_newest = |page: &Arc<Page>| self.newest.iter().any(|newest| Arc::ptr_eq(newest, page));
        let mut held = self.held.iter().filter_map(Weak::upgrade);
        (self.held.len() >= MAX_PAGES).then(|| held.find(|page| !is_newest(page))).flatten()
    }

    /// Builds a page, the newest of its form from now on.
    ///
    /// # Errors
    ///
    /// If the metrics cannot be encoded.
    pub(super) fn build(&mut self, form: Form, targets: &[Target], version: Version) -> Result<Arc<Page>, fmt::Error> {
        // The one before is dropped first, unless a scraper reads it.
        self.newest.retain(|newest| newest.form != form);
        let page = Arc::new(Page::build(form, targets, version)?);
        self.held.push(Arc::downgrade(&page));
        self.newest.push(Arc::clone(&page));
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    fn targets() -> Vec<Target> {
        let nowhere = Endpoint::Unix { path: "/nowhere".into() };
        vec![Target::new("web".to_owned(), nowhere, Instant::now(), false)]
    }

    fn build(pages: &mut Pages, form: Form, targets: &[Target]) -> Arc<Page> {
        pages.build(form, targets, Version::of(targets, 0)).unwrap()
    }

    #[test]
    fn a_page_is_shared_until_a_target_was_read_again() {
        let (mut pages, mut targets) = (Pages::default(), targets());
        let first = build(&mut pages, Form::Plain, &targets);
        let later = first.next_at();
        let newest = |form, targets: &[Target]| pages.current(form, Version::of(targets, 0), later);
        assert!(Arc::ptr_eq(&first, &newest(Form::Plain, &targets).unwrap()));
        assert!(newest(Form::OpenMetrics, &targets).is_none());
        targets[0].reads += 1;
        assert!(newest(Form::Plain, &targets).is_none());
    }

    #[test]
    fn a_page_is_not_built_anew_for_each_read() {
        let (mut pages, mut targets) = (Pages::default(), targets());
        let first = build(&mut pages, Form::Plain, &targets);
        targets[0].reads += 1;
        let current = |at, changes| pages.current(Form::Plain, Version::of(&targets, changes), at);
        assert!(Arc::ptr_eq(&first, &current(first.built, 0).unwrap()));
        assert!(current(first.next_at(), 0).is_none());
        assert!(current(first.built, 1).is_none(), "a target was added or removed");
    }

    #[test]
    fn the_oldest_page_that_is_read_is_in_excess() {
        let (mut pages, mut targets) = (Pages::default(), targets());
        let mut read = Vec::new();
        for _ in 0..MAX_PAGES {
            assert!(pages.excess().is_none());
            read.push(build(&mut pages, Form::Plain, &targets));
            targets[0].reads += 1;
        }
        assert!(Arc::ptr_eq(&pages.excess().unwrap(), &read[0]));
        read.remove(0);
        assert!(pages.excess().is_none());
    }
}
