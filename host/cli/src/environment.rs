//! The environment variables, and their table in `--help` and the man pages.

/// An environment variable.
struct Variable {
    name: &'static str,
    text: &'static str,
    /// The verbs that read it, as in the names of their man pages.
    verbs: &'static [&'static str],
}

const VARIABLES: [Variable; 4] = [
    Variable {
        name: "SCX_VSOCK_AGENT",
        text: "an agent's file to use instead of the carried one",
        verbs: &["boot", "image-add", "doctor"],
    },
    Variable {
        name: "SCX_VSOCK_ACCELERATOR",
        text: "kvm or tcg; by default boot uses KVM where it works",
        verbs: &["boot"],
    },
    Variable {
        name: "QEMU",
        text: "the QEMU program; by default qemu-system-x86_64 or qemu-system-aarch64",
        verbs: &["boot", "doctor"],
    },
    Variable {
        name: "NO_COLOR",
        text: "if it is not empty, output has no colors",
        verbs: &["stats", "watch", "meta", "doctor", "boot"],
    },
];

/// Returns the table for the end of the help.
pub fn help() -> String {
    table(VARIABLES.iter())
}

/// Returns the table of one verb, such as `image-add`; `None` if it reads no variable.
pub fn help_of(verb: &str) -> Option<String> {
    let mut read = VARIABLES.iter().filter(|variable| variable.verbs.contains(&verb)).peekable();
    read.peek().is_some().then(|| table(read))
}

fn table<'v>(variables: impl Iterator<Item = &'v Variable>) -> String {
    let rows = variables.map(|Variable { name, text, .. }| format!("\n  {name:<21}  {text}"));
    format!("Environment:{}", rows.collect::<String>())
}
