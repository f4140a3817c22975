//! The user's terminal: raw mode, size, hidden input.

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd};

/// The size of the terminal on standard output, as columns and rows.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// A changed terminal; dropping it changes it back.
pub struct Changed<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Changed<'a> {
    /// Hands every key on as it is typed, without echo.
    ///
    /// # Errors
    /// Not a terminal.
    pub fn raw(terminal: &'a impl AsFd) -> io::Result<Self> {
        Self::by(terminal, Termios::make_raw)
    }

    /// Does not show what is typed.
    ///
    /// # Errors
    /// Not a terminal.
    pub fn hidden(terminal: &'a impl AsFd) -> io::Result<Self> {
        Self::by(terminal, |settings| settings.local_modes.remove(LocalModes::ECHO))
    }

    fn by(terminal: &'a impl AsFd, change: impl FnOnce(&mut Termios)) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut settings = before.clone();
        change(&mut settings);
        tcsetattr(terminal, OptionalActions::Now, &settings)?;
        Ok(Self { terminal: terminal.as_fd(), before })
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Asks for a line on the terminal.
///
/// # Errors
/// Standard input cannot be read.
pub fn ask(question: &str) -> io::Result<String> {
    crate::output::print(question)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks for a line that is not shown.
///
/// # Errors
/// Standard input is not a terminal.
pub fn ask_hidden(question: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let hidden = Changed::hidden(&stdin)?;
    let answer = ask(question);
    drop(hidden);
    crate::output::print("\n")?;
    answer
}
