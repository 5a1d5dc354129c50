//! The guests that are exported: those of the command line, of a file and of a folder.

use std::collections::{BTreeSet, btree_map};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Result, bail};
use scx_vsock::Endpoint;
use scx_vsock::export::Exporter;

use super::guests_file::GuestsFile;
use super::guests_folder::GuestsFolder;
use super::named_guest::{Guests, NamedGuest};
use crate::error_report::{one_line, wrong_arguments};
use crate::output::eprintln;

/// The guests, and where they come from.
#[derive(Debug)]
pub struct GuestList {
    named: Guests,
    file: Option<Source<GuestsFile>>,
    folder: Option<Source<GuestsFolder>>,
    /// Those that the exporter has.
    exported: Guests,
}

/// A source that may change, and its guests when it was right last.
#[derive(Debug)]
struct Source<T> {
    from: T,
    guests: Guests,
}

impl<T> Source<T> {
    /// Takes the guests that were read if they are new ones.
    fn update(&mut self, read: Result<Option<Guests>>) {
        match read {
            Ok(Some(guests)) => self.guests = guests,
            Ok(None) => {}
            Err(error) => report(&error),
        }
    }
}

fn report(error: &anyhow::Error) {
    eprintln!("scx-vsock: {}; the guests stay as they were", one_line(&format!("{error:#}")));
}

fn report_skipped(name: &str) {
    eprintln!("scx-vsock: the socket {} in the folder is skipped: another guest has its name", one_line(name));
}

impl GuestList {
    /// Reads all sources.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or two guests have one name, which of arguments is an error of usage.
    pub fn new(named: &[NamedGuest], file: Option<GuestsFile>, folder: Option<GuestsFolder>) -> Result<Self> {
        let named = merge(named.iter().map(|guest| (&guest.name, &guest.endpoint))).map_err(wrong_arguments)?;
        let file = file.map(|from| Ok::<_, anyhow::Error>(Source { guests: from.read()?, from })).transpose()?;
        let folder = folder.map(|from| Ok::<_, anyhow::Error>(Source { guests: from.read()?, from })).transpose()?;
        let list = Self { named, file, folder, exported: Guests::new() };
        list.all()?;
        Ok(list)
    }

    /// The descriptors that are readable when the list may have changed.
    pub fn watches(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let file = self.file.iter().map(|file| file.from.watch.as_fd());
        file.chain(self.folder.iter().map(|folder| folder.from.watch.as_fd()))
    }

    /// Reads again what has changed. What is wrong is reported, and leaves the guests as they were.
    pub fn refresh(&mut self) {
        if let Some(file) = &mut self.file {
            file.update(file.from.changed());
        }
        if let Some(folder) = &mut self.folder {
            folder.update(folder.from.changed());
        }
    }

    /// Gives the exporter the guests that are new, and takes from it those that are gone. Returns how many it has if
    /// something changed.
    pub fn apply(&mut self, exporter: &mut Exporter) -> Option<usize> {
        let guests = match self.all() {
            Ok((guests, skipped)) => {
                skipped.iter().for_each(|name| report_skipped(name));
                guests
            }
            Err(error) => {
                report(&error);
                return None;
            }
        };
        let before = std::mem::replace(&mut self.exported, guests);
        let (gone, new) = (missing_in(&before, &self.exported), missing_in(&self.exported, &before));
        // All at once: a fleet may leave at once.
        let gone: BTreeSet<&str> = gone.into_iter().map(|(name, _)| name.as_str()).collect();
        if !gone.is_empty() {
            exporter.retain(|name| !gone.contains(name));
        }
        new.iter().for_each(|(name, endpoint)| exporter.add(*name, (*endpoint).clone()));
        (!gone.is_empty() || !new.is_empty()).then_some(self.exported.len())
    }

    /// Returns all guests, and the names of sockets in the folder that are skipped.
    fn all(&self) -> Result<(Guests, Vec<&String>)> {
        let file = self.file.iter().flat_map(|file| &file.guests);
        let mut guests = merge(self.named.iter().chain(file))?;
        let skipped = add_new(&mut guests, self.folder.iter().flat_map(|folder| &folder.guests));
        Ok((guests, skipped))
    }
}

/// Adds the guests of a folder. One whose name is taken is skipped: who creates sockets there keeps no other guest out.
/// Returns the names of those.
fn add_new<'g>(guests: &mut Guests, folder: impl Iterator<Item = (&'g String, &'g Endpoint)>) -> Vec<&'g String> {
    let mut skipped = Vec::new();
    for (name, endpoint) in folder {
        match guests.entry(name.clone()) {
            btree_map::Entry::Vacant(entry) => drop(entry.insert(endpoint.clone())),
            btree_map::Entry::Occupied(_) => skipped.push(name),
        }
    }
    skipped
}

/// The guests that the others are not, or have at another address.
fn missing_in<'g>(guests: &'g Guests, others: &Guests) -> Vec<(&'g String, &'g Endpoint)> {
    guests.iter().filter(|(name, endpoint)| others.get(*name) != Some(endpoint)).collect()
}

fn merge<'g>(guests: impl Iterator<Item = (&'g String, &'g Endpoint)>) -> Result<Guests> {
    let mut merged = Guests::new();
    for (name, endpoint) in guests {
        match merged.entry(name.clone()) {
            btree_map::Entry::Vacant(entry) => drop(entry.insert(endpoint.clone())),
            btree_map::Entry::Occupied(_) => {
                bail!("two guests are named {name:?}; give each a name of its own, as in NAME=URI")
            }
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(of: &[(&str, u32)]) -> Guests {
        of.iter().map(|&(name, cid)| (name.to_owned(), Endpoint::Vsock { cid, port: 729 })).collect()
    }

    #[test]
    fn a_socket_with_the_name_of_another_guest_keeps_nobody_out() {
        let (mut named, folder) = (guests(&[("a", 3)]), guests(&[("a", 4), ("b", 5)]));
        assert_eq!(add_new(&mut named, folder.iter()), ["a"]);
        assert_eq!(named, guests(&[("a", 3), ("b", 5)]));
    }

    #[test]
    fn a_guest_at_another_address_is_another_guest() {
        let (before, now) = (guests(&[("a", 3), ("b", 4), ("c", 5)]), guests(&[("a", 3), ("b", 6), ("d", 7)]));
        let names = |of: Vec<(&String, &Endpoint)>| of.iter().map(|(name, _)| (*name).clone()).collect::<Vec<_>>();
        assert_eq!(names(missing_in(&before, &now)), ["b", "c"]);
        assert_eq!(names(missing_in(&now, &before)), ["b", "d"]);
    }
}
