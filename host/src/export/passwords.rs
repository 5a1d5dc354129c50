//! Basic authentication (RFC 7617) by bcrypt hashes, which take long by design: they are computed on a thread of their own,
//! one at a time, and each password only once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::event::PollFlags;

use crate::io::eventfd::{EventFd, Notify};
use crate::io::poll::PollSet;

/// Outcomes that are remembered, of passwords that are right and of those that are wrong.
const MAX_REMEMBERED: usize = 256;

/// Users and their hashes.
pub(super) type Users = BTreeMap<String, String>;

/// What is known of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    Refused,
    /// It is being checked, or another one is.
    Pending,
}

/// Checks passwords.
pub(super) struct Passwords {
    users: Arc<Users>,
    jobs: SyncSender<Job>,
    verdicts: Receiver<(Key, bool)>,
    done: Arc<EventFd>,
    pending: Option<Key>,
    right: HashSet<Key>,
    wrong: VecDeque<Key>,
    hashers: [RandomState; 2],
}

/// A secret hash of a user and a password, so that passwords need not be kept.
type Key = [u64; 2];

struct Job {
    key: Key,
    user: String,
    password: Vec<u8>,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl Passwords {
    /// Starts the thread, which ends when this is dropped.
    ///
    /// # Errors
    ///
    /// If there is no thread or descriptor for it.
    pub(super) fn new(users: Users) -> io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(1);
        let (finished, verdicts) = sync_channel(1);
        let (users, done) = (Arc::new(users), Arc::new(EventFd::new()?));
        let (checked, notified) = (Arc::clone(&users), Arc::clone(&done));
        thread::Builder::new().name("passwords".to_owned()).spawn(move || {
            for Job { key, user, password } in waiting {
                let verdict = (key, is_right(&checked, &user, &password));
                if finished.send(verdict).is_err() {
                    return;
                }
                notified.notify();
            }
        })?;
        let hashers = [RandomState::new(), RandomState::new()];
        let (right, wrong) = (HashSet::new(), VecDeque::new());
        Ok(Self { users, jobs, verdicts, done, pending: None, right, wrong, hashers })
    }

    /// Adds the descriptor that is readable when a check has ended.
    pub(super) fn register<'a>(&'a self, set: &mut PollSet<'a>) {
        set.add(&*self.done, PollFlags::IN);
    }

    /// Records the checks that have ended.
    pub(super) fn on_event(&mut self) {
        self.done.clear();
        while let Ok((key, is_right)) = self.verdicts.try_recv() {
            self.pending = None;
            if is_right {
                if self.right.len() >= MAX_REMEMBERED {
                    self.right.clear();
                }
                self.right.insert(key);
            } else {
                self.wrong.truncate(MAX_REMEMBERED - 1);
                self.wrong.push_front(key);
            }
        }
    }

    /// Returns what is known of the value of an Authorization header.
    pub(super) fn verdict(&self, authorization: Option<&[u8]>) -> Verdict {
        let Some((user, password)) = authorization.and_then(credentials) else { return Verdict::Refused };
        let key = self.key(&user, &password);
        if self.right.contains(&key) {
            Verdict::Granted
        } else if self.wrong.contains(&key) {
            Verdict::Refused
        } else {
            Verdict::Pending
        }
    }

    /// Whether a check can be started.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// Starts to check a header whose verdict is pending, if no other is being checked.
    pub(super) fn check(&mut self, authorization: &[u8]) {
        let Some((user, password)) = credentials(authorization).filter(|_| self.pending.is_none()) else { return };
        let key = self.key(&user, &password);
        if self.jobs.try_send(Job { key, user, password }).is_ok() {
            self.pending = Some(key);
        }
    }

    fn key(&self, user: &str, password: &[u8]) -> Key {
        self.hashers.each_ref().map(|hasher| hasher.hash_one((user, password)))
    }
}

/// Whether this is the user's password. That of a user who is unknown takes as long.
fn is_right(users: &Users, user: &str, password: &[u8]) -> bool {
    let hash = users.get(user);
    let Some(checked) = hash.or_else(|| users.values().next()) else { return false };
    bcrypt::non_truncating_verify(password, checked).unwrap_or(false) && hash.is_some()
}

/// The user and the password of a header's value.
fn credentials(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = authorization.split_at_checked("Basic ".len())?;
    let decoded =
        BASE64_STANDARD.decode(encoded.trim_ascii()).ok().filter(|_| scheme.eq_ignore_ascii_case(b"Basic "))?;
    let at = decoded.iter().position(|&byte| byte == b':')?;
    let (user, password) = decoded.split_at_checked(at)?;
    Some((String::from_utf8(user.to_vec()).ok()?, password.get(1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(user: &str, password: &str) -> Vec<u8> {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))).into_bytes()
    }

    fn passwords() -> Passwords {
        let hash = bcrypt::hash("secret", 4).unwrap();
        Passwords::new(Users::from([("alice".to_owned(), hash)])).unwrap()
    }

    fn checked(passwords: &mut Passwords, header: &[u8]) -> Verdict {
        if passwords.verdict(Some(header)) == Verdict::Pending {
            passwords.check(header);
            let mut set = PollSet::default();
            passwords.register(&mut set);
            set.wait().unwrap();
            passwords.on_event();
        }
        passwords.verdict(Some(header))
    }

    #[test]
    fn only_the_right_password_is_granted() {
        let mut passwords = passwords();
        assert_eq!(passwords.verdict(None), Verdict::Refused);
        assert_eq!(passwords.verdict(Some(b"Bearer x")), Verdict::Refused);
        assert_eq!(passwords.verdict(Some(b"Basic !")), Verdict::Refused);
        assert_eq!(checked(&mut passwords, &header("alice", "secret")), Verdict::Granted);
        assert_eq!(checked(&mut passwords, &header("alice", "secrets")), Verdict::Refused);
        assert_eq!(checked(&mut passwords, &header("bob", "secret")), Verdict::Refused);
        assert_eq!(checked(&mut passwords, &header("alice", &"x".repeat(100))), Verdict::Refused);
    }

    #[test]
    fn a_checked_password_is_not_checked_again() {
        let mut passwords = passwords();
        let header = header("alice", "secret");
        assert_eq!(passwords.verdict(Some(&header)), Verdict::Pending);
        assert_eq!(checked(&mut passwords, &header), Verdict::Granted);
        assert!(passwords.is_idle() && passwords.verdict(Some(&header)) == Verdict::Granted);
    }

    #[test]
    fn a_password_may_have_colons() {
        assert_eq!(credentials(&header("a", "b:c")), Some(("a".to_owned(), b"b:c".to_vec())));
        assert_eq!(credentials(b"basic YTpi"), Some(("a".to_owned(), b"b".to_vec())));
        assert_eq!(credentials(b"Basic YQ=="), None);
    }
}
