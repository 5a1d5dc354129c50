//! A terminal of a test, and what is printed on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::peer::DEADLINE;

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Keys go in here.
    controller: File,
    /// The programs' end, which stays open while none of them has it open.
    terminal: OwnedFd,
    output: Receiver<Vec<u8>>,
    printed: String,
}

impl Terminal {
    /// Creates a terminal of this size.
    #[must_use]
    pub fn new(columns: u16, lines: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        tcsetwinsize(&controller, size(columns, lines)).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let controller = File::from(controller);
        let output = read_in_thread(controller.try_clone().unwrap());
        Self { controller, terminal, output, printed: String::new() }
    }

    /// Returns the terminal for a program.
    #[must_use]
    pub fn stdio(&self) -> Stdio {
        self.terminal.try_clone().unwrap().into()
    }

    /// Waits until a text is printed after the one that was waited for last, and returns what is before it.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_within(text, DEADLINE)
    }

    /// As [`wait_for`](Self::wait_for), where the terminal may be silent for this long.
    pub fn wait_for_within(&mut self, text: &str, silence: Duration) -> String {
        loop {
            if let Some((before, after)) = self.printed.split_once(text) {
                let before = before.to_owned();
                self.printed = after.to_owned();
                return before;
            }
            let Ok(bytes) = self.output.recv_timeout(silence) else { panic!("no {text:?} in {:?}", self.printed) };
            self.printed += &String::from_utf8_lossy(&bytes);
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &[u8]) {
        self.controller.write_all(keys).unwrap();
    }

    /// Changes its size.
    pub fn resize(&self, columns: u16, lines: u16) {
        tcsetwinsize(&self.controller, size(columns, lines)).unwrap();
    }

    /// Whether keys arrive one by one, without an echo.
    #[must_use]
    pub fn passes_keys(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Returns all that was printed up to now after what was waited for last.
    #[must_use]
    pub fn rest(&mut self) -> String {
        // A control character that no program of these tests prints.
        const END: &str = "\u{1e}";
        rustix::io::write(&self.terminal, END.as_bytes()).unwrap();
        self.wait_for(END)
    }
}

fn size(columns: u16, lines: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: lines, ws_xpixel: 0, ws_ypixel: 0 }
}

/// What the terminal shows, until nobody has it open.
fn read_in_thread(mut controller: File) -> Receiver<Vec<u8>> {
    let (sender, output) = channel();
    thread::spawn(move || {
        let mut bytes = vec![0; 4096];
        while let Ok(count @ 1..) = controller.read(&mut bytes) {
            let _test_is_over = sender.send(bytes.iter().take(count).copied().collect());
        }
    });
    output
}
