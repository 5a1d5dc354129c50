//! The profile that callgrind writes, as far as it is read here.
//!
//! [The format]: a line `ob=` names the object whose functions' costs follow; a line that begins with a position has the
//! cost of a function itself; `cob=` names the object of the next call, and the line after `calls=` has what that call cost,
//! which is no cost of the function itself. A name is `(number) text` where it comes first, and `(number)` later.
//!
//! [The format]: https://valgrind.org/docs/manual/cl-format.html

use std::collections::HashMap;

/// The counts of a whole profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Instructions of the object's own functions.
    pub instructions: u64,
    /// Calls from there into other objects.
    pub calls: u64,
}

/// Returns the counts of the object with this path.
pub fn of_object(profile: &str, object: &str) -> Total {
    let mut objects = Objects::default();
    let (mut total, mut in_object, mut called, mut is_call) = (Total::default(), false, None, false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            in_object = objects.name(name) == object;
        } else if let Some(name) = line.strip_prefix("cob=") {
            called = Some(objects.name(name) == object);
        } else if let Some(count) = line.strip_prefix("calls=") {
            let leaves = called.take() == Some(false);
            total.calls += if in_object && leaves { first_number(count) } else { 0 };
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let of_call = std::mem::take(&mut is_call);
            total.instructions +=
                if in_object && !of_call { line.split(' ').nth(1).map_or(0, first_number) } else { 0 };
        }
    }
    total
}

fn first_number(text: &str) -> u64 {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The names of objects by their numbers.
#[derive(Default)]
struct Objects<'a>(HashMap<&'a str, &'a str>);

impl<'a> Objects<'a> {
    fn name(&mut self, text: &'a str) -> &'a str {
        match text.split_once(' ') {
            Some((number, name)) => {
                self.0.insert(number, name);
                name
            }
            None => self.0.get(text).copied().unwrap_or(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "# callgrind format\nversion: 1\npositions: line\nevents: Ir\n\n\
        ob=(1) /bin/ours\nfl=(1) ???\nfn=(1) outer\n0 100\ncfn=(2) inner\ncalls=10 0 \n0 70\n\
        cob=(2) /lib/libc.so.6\ncfn=(3) memcpy\ncalls=3 0 \n0 900\n+1 5\n\n\
        ob=(2)\nfn=(3)\n0 900\ncob=(3) /lib/ld.so\ncfn=(4) resolve\ncalls=1 0\n0 7\n\n\
        ob=(1)\nfn=(2)\n* 77\ncfn=(5) innermost\ncalls=2 0\n0 8\n";

    #[test]
    fn an_objects_own_instructions_and_calls_count() {
        assert_eq!(of_object(PROFILE, "/bin/ours"), Total { instructions: 182, calls: 3 });
        assert_eq!(of_object(PROFILE, "/lib/libc.so.6"), Total { instructions: 900, calls: 1 });
        assert_eq!(of_object(PROFILE, "/bin/other"), Total::default());
    }
}
