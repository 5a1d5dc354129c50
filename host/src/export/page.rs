//! A page that is built once and sent to every scraper that it answers, and the bound on how many there are.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clock::{MIN_INTERVAL, after};
use super::exposition::{self, Form};
use super::target::Target;

/// How many times as long as it took to build a page, the next one for scrapers whose own time is over must wait: so that
/// they cannot keep the thread busy.
const REST: u32 = 4;

/// Pages that are held at a time, the newest of each form included.
pub(super) const MAX_PAGES: usize = 8;

/// The metrics of all targets in one form.
pub(super) struct Page {
    pub(super) form: Form,
    pub(super) text: String,
    /// The reads of targets that had ended.
    reads: u64,
    /// Targets that have no outcome since then are shown as they are: being read.
    since: Instant,
    built: Instant,
    took: Duration,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("form", &self.form).field("bytes", &self.text.len()).finish_non_exhaustive()
    }
}

impl Page {
    fn build(form: Form, targets: &[Target], since: Instant) -> Result<Self, fmt::Error> {
        let built = Instant::now();
        let text = exposition::build(form, targets, since, built)?;
        Ok(Self { form, text, reads: reads(targets), since, built, took: built.elapsed() })
    }

    fn next_at(&self) -> Instant {
        after(self.built, self.took.saturating_mul(REST).max(MIN_INTERVAL))
    }
}

fn reads(targets: &[Target]) -> u64 {
    targets.iter().fold(0, |sum, target| sum.wrapping_add(target.reads))
}

/// How new a page must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Freshness {
    /// It has every outcome that there is.
    Complete,
    /// It may be a little older: the scrapers' own time is over, and it is now.
    Recent(Instant),
}

impl Page {
    /// Whether it answers scrapers of which the first has waited since `since`.
    fn answers(&self, freshness: Freshness, targets: &[Target], since: Instant) -> bool {
        match freshness {
            Freshness::Complete => self.reads == reads(targets) && self.since <= since,
            Freshness::Recent(now) => now < self.next_at(),
        }
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
    /// Returns the newest page of a form, if it is so new for scrapers of which the first has waited since `since`.
    pub(super) fn newest(
        &self,
        form: Form,
        freshness: Freshness,
        targets: &[Target],
        since: Instant,
    ) -> Option<Arc<Page>> {
        let newest = self.newest.iter().find(|page| page.form == form);
        newest.filter(|page| page.answers(freshness, targets, since)).cloned()
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
    pub(super) fn build(&mut self, form: Form, targets: &[Target], since: Instant) -> Result<Arc<Page>, fmt::Error> {
        let page = Arc::new(Page::build(form, targets, since)?);
        self.held.push(Arc::downgrade(&page));
        self.newest.retain(|newest| newest.form != form);
        self.newest.push(Arc::clone(&page));
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    fn targets() -> Vec<Target> {
        vec![Target::new("web".to_owned(), Endpoint::Unix { path: "/nowhere".into() })]
    }

    #[test]
    fn a_page_is_shared_until_a_target_was_read_again() {
        let (mut pages, mut targets, now) = (Pages::default(), targets(), Instant::now());
        let complete = |pages: &Pages, form, targets: &[Target]| pages.newest(form, Freshness::Complete, targets, now);
        let first = pages.build(Form::Plain, &targets, now).unwrap();
        assert!(Arc::ptr_eq(&first, &complete(&pages, Form::Plain, &targets).unwrap()));
        assert!(complete(&pages, Form::OpenMetrics, &targets).is_none());
        targets[0].reads += 1;
        assert!(complete(&pages, Form::Plain, &targets).is_none());
    }

    #[test]
    fn overdue_scrapers_share_a_recent_page() {
        let (mut pages, mut targets) = (Pages::default(), targets());
        let now = Instant::now();
        let first = pages.build(Form::Plain, &targets, now).unwrap();
        targets[0].reads += 1;
        let recent = |at| pages.newest(Form::Plain, Freshness::Recent(at), &targets, at);
        assert!(Arc::ptr_eq(&first, &recent(now).unwrap()));
        assert!(recent(first.next_at()).is_none());
    }

    #[test]
    fn the_oldest_page_that_is_read_is_in_excess() {
        let (mut pages, mut targets, now) = (Pages::default(), targets(), Instant::now());
        let mut read = Vec::new();
        for _ in 0..MAX_PAGES {
            assert!(pages.excess().is_none());
            read.push(pages.build(Form::Plain, &targets, now).unwrap());
            targets[0].reads += 1;
        }
        assert!(Arc::ptr_eq(&pages.excess().unwrap(), &read[0]));
        read.remove(0);
        assert!(pages.excess().is_none());
    }
}
