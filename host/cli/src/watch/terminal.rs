//! A terminal that shows a table instead of what was on it, and is restored afterwards.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The size where the terminal does not know it.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// The second screen; no cursor; a line that is too long is truncated.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";

/// Ends what [`ENTER`] began.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

const CLEAR_SCREEN: &str = "\x1b[2J";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_LINE: &str = "\x1b[2K";
const FIRST_LINE: &str = "\x1b[H";

/// A terminal that shows a table. It is restored when this is dropped, and before a panic prints its message.
pub struct Terminal(Arc<Screen>);

struct Screen {
    output: File,
    /// Where keys come from, if that is a terminal, and how it was set up.
    keys: Option<(File, Termios)>,
    is_entered: AtomicBool,
    has_styles: bool,
}

impl Terminal {
    /// Shows an empty screen on the terminal at stdout. Keys arrive at stdin one by one, without an echo.
    ///
    /// # Errors
    ///
    /// There is no descriptor left, or the terminal is gone.
    pub fn enter() -> Result<Self> {
        let (input, output) = (io::stdin(), io::stdout());
        let input = input.is_terminal().then(|| input.as_fd().try_clone_to_owned()).transpose()?;
        let has_styles = anstream::AutoStream::choice(&output) != anstream::ColorChoice::Never;
        Self::enter_at(input, output.as_fd().try_clone_to_owned()?, has_styles)
    }

    fn enter_at(input: Option<OwnedFd>, output: OwnedFd, has_styles: bool) -> Result<Self> {
        let keys = input.map(|input| tcgetattr(&input).map(|modes| (File::from(input), modes))).transpose()?;
        let screen = Screen { output: output.into(), keys, is_entered: AtomicBool::new(false), has_styles };
        let terminal = Self(Arc::new(screen));
        terminal.restore_before_a_panic_message();
        terminal.0.enter()?;
        Ok(terminal)
    }

    fn restore_before_a_panic_message(&self) {
        let screen = Arc::clone(&self.0);
        let print_message = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            screen.leave();
            print_message(panic);
        }));
    }

    /// Where keys can be read, if stdin is a terminal.
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub fn keys(&self) -> io::Result<Option<File>> {
        self.0.keys.as_ref().map(|(keys, _)| keys.try_clone()).transpose()
    }

    /// The columns and the lines.
    pub fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.0.output) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => DEFAULT_SIZE,
        }
    }

    /// Shows these lines on a terminal that has `height` of them.
    ///
    /// # Errors
    ///
    /// The terminal cannot be written.
    pub fn draw(&self, lines: &[String], height: usize) -> Result<()> {
        // A line is cleared first: what clears from the cursor on would take the last column of a full line.
        let text = lines.join(&format!("\n{CLEAR_LINE}"));
        let text = if self.0.has_styles { text } else { anstream::adapter::strip_str(&text).to_string() };
        let clear_rest = if lines.len() < height { format!("\n{CLEAR_BELOW}") } else { String::new() };
        self.0.write(&format!("{FIRST_LINE}{CLEAR_LINE}{text}{clear_rest}"))
    }

    /// Clears the screen, whose lines have moved where its size has changed.
    ///
    /// # Errors
    ///
    /// The terminal cannot be written.
    pub fn clear(&self) -> Result<()> {
        self.0.write(CLEAR_SCREEN)
    }

    /// Stops this process as the terminal asks it to, with the terminal restored until it is continued.
    ///
    /// # Errors
    ///
    /// The terminal cannot be written.
    pub fn stop_process(&self) -> Result<()> {
        self.0.leave();
        kill_process(getpid(), Signal::STOP)?;
        self.0.enter()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Screen {
    fn enter(&self) -> Result<()> {
        self.is_entered.store(true, Ordering::SeqCst);
        if let Some((keys, modes)) = &self.keys {
            let mut modes = modes.clone();
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            modes.special_codes[SpecialCodeIndex::VMIN] = 1;
            modes.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(keys, OptionalActions::Now, &modes)?;
        }
        self.write(&format!("{ENTER}{CLEAR_SCREEN}"))
    }

    fn leave(&self) {
        if self.is_entered.swap(false, Ordering::SeqCst) {
            // What fails has no terminal any more.
            let _written = self.write(LEAVE);
            if let Some((keys, modes)) = &self.keys {
                let _set = tcsetattr(keys, OptionalActions::Now, modes);
            }
        }
    }

    fn write(&self, text: &str) -> Result<()> {
        (&self.output).write_all(text.as_bytes()).context("cannot write to stdout")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    /// Both ends of a terminal.
    fn pty() -> (File, OwnedFd) {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (controller.into(), terminal)
    }

    fn modes(of: &impl AsFd) -> String {
        format!("{:?}", tcgetattr(of).unwrap())
    }

    /// Reads up to a text, which must come.
    fn read_until(controller: &mut File, end: &str) -> String {
        let within = Timespec { tv_sec: 20, tv_nsec: 0 };
        let (mut text, mut bytes) = (String::new(), [0; 1_000]);
        while !text.ends_with(end) {
            let ready = poll(&mut [PollFd::new(controller, PollFlags::IN)], Some(&within)).unwrap();
            assert!(ready > 0, "no {end:?} after {text:?}");
            let count = controller.read(&mut bytes).unwrap();
            text += &String::from_utf8_lossy(bytes.get(..count).unwrap());
        }
        text
    }

    #[test]
    fn a_panic_restores_the_terminal() {
        let (mut controller, terminal) = pty();
        let before = modes(&terminal);
        let ends = [terminal.try_clone().unwrap(), terminal.try_clone().unwrap()];
        let thread = thread::spawn(move || {
            let [input, output] = ends;
            let entered = Terminal::enter_at(Some(input), output, true).unwrap();
            entered.draw(&["line".into()], 24).unwrap();
            let modes = modes(&entered.0.output);
            std::panic::panic_any(modes);
        });
        let during = *thread.join().unwrap_err().downcast::<String>().unwrap();
        assert_ne!(during, before);
        assert_eq!(modes(&terminal), before);
        let printed = read_until(&mut controller, LEAVE);
        assert!(printed.starts_with(ENTER) && printed.contains("line"), "{printed:?}");
    }

    #[test]
    fn a_terminal_without_a_size_has_the_usual_one() {
        let (_controller, terminal) = pty();
        let entered = Terminal::enter_at(None, terminal, false).unwrap();
        assert!(entered.keys().unwrap().is_none());
        assert_eq!(entered.size(), DEFAULT_SIZE);
    }
}
