//! How many descriptors this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as this user may: each guest needs descriptors, and the limit is often 1,024. If that fails, what
/// has no descriptor is reported when it needs one.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let _raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
