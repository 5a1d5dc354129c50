//! The init that starts the agent and becomes the image's own.

use shlex::try_quote;

use super::error::InitramfsError;

/// The agent's path in the guest. The folder is the agent's own: a folder that is a link in the base would lose its files.
pub const AGENT: &str = "scx-vsock/agent";

/// The path of the base's own init in the guest.
pub const INIT: &str = "scx-vsock/init";

/// Returns the script for this interpreter line.
pub(super) fn start_script(shell: &str, arguments: &[&str]) -> Result<String, InitramfsError> {
    let mut command = format!("/{AGENT}");
    for argument in arguments {
        let quoted =
            try_quote(argument).map_err(|_| InitramfsError::NulInArgument { argument: (*argument).to_owned() })?;
        command.push(' ');
        command.push_str(&quoted);
    }
    Ok(format!("#!{shell}\n{command} &\n{}", exec_line()))
}

/// Returns the last line of a start script.
fn exec_line() -> String {
    format!("exec /{INIT} \"$@\"\n")
}

/// Whether this init is a start script, so that the base's own init has been moved already.
pub(super) fn is_start_script(init: &[u8]) -> bool {
    init.starts_with(b"#!") && init.ends_with(exec_line().as_bytes())
}
