use super::status_text;
use super::trace::{Change, State, Trace, VertexTrace};
use crate::sanitise;
use forge_session::Event;
use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

/// The state of a terminal's progress display. It draws nothing: [`Tty::settled`] gives lines that stay,
/// [`Tty::frame`] those that are drawn anew each time.
pub struct Tty {
    trace: Trace,
    style: Style,
    started: SystemTime,
    tails: HashMap<usize, VecDeque<String>>,
    settled: Vec<usize>,
}

/// How the display looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Whether colours are used.
    pub colour: bool,
    /// How many lines of a running step's output are shown.
    pub log_lines: usize,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

const BLUE: &str = "\x1b[34m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const FAINT: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

impl Tty {
    /// A display that starts now.
    pub fn new(style: Style, now: SystemTime) -> Self {
        Self { trace: Trace::default(), style, started: now, tails: HashMap::new(), settled: Vec::new() }
    }

    /// Takes an event in.
    pub fn event(&mut self, event: &Event) {
        match self.trace.apply(event) {
            Change::Lines(place, lines) => {
                let tail = self.tails.entry(place).or_default();
                tail.extend(lines.iter().map(|line| sanitise::log_line(&line.bytes)));
                let surplus = tail.len().saturating_sub(self.style.log_lines);
                tail.drain(..surplus);
            }
            Change::State(place) if self.trace.vertex(place).is_over() => {
                self.trace.drain(place);
                self.tails.remove(&place);
            }
            _ => {}
        }
    }

    /// The lines of steps that ended since the last call.
    pub fn settled(&mut self, now: SystemTime, size: Size) -> Vec<String> {
        let vertices = self.trace.vertices().iter().enumerate();
        let new: Vec<usize> = vertices
            .filter(|(place, vertex)| vertex.is_over() && !self.settled.contains(place))
            .map(|(place, _)| place)
            .collect();
        let lines = new.iter().map(|place| self.headline(self.trace.vertex(*place), now, size)).collect();
        self.settled.extend(new);
        lines
    }

    /// The lines that are drawn anew: a headline and the running steps with their transfers and last output.
    pub fn frame(&self, now: SystemTime, size: Size) -> Vec<String> {
        let running = self.trace.vertices().iter().enumerate().filter(|(_, vertex)| vertex.state() == State::Running);
        let mut lines = vec![self.title(now, "")];
        for (place, vertex) in running {
            lines.push(self.headline(vertex, now, size));
            lines.extend(self.transfers(vertex, now, size));
            lines.extend(self.tail(place, size));
        }
        lines.truncate(size.rows.saturating_sub(1).max(1));
        lines
    }

    /// The last lines, after the build ended.
    pub fn finish(&mut self, now: SystemTime, size: Size) -> String {
        let mut lines = self.settled(now, size);
        let word = if self.trace.has_failure() { " ERROR" } else { " FINISHED" };
        lines.push(self.title(now, word));
        lines.join("\n") + "\n"
    }

    fn title(&self, now: SystemTime, word: &str) -> String {
        let vertices = self.trace.vertices();
        let over = vertices.iter().filter(|vertex| vertex.is_over()).count();
        let elapsed = now.duration_since(self.started).unwrap_or_default().as_secs_f64();
        format!("[+] Building {elapsed:.1}s ({over}/{}){word}", vertices.len())
    }

    fn headline(&self, vertex: &VertexTrace, now: SystemTime, size: Size) -> String {
        let (word, colour) = match vertex.state() {
            State::Cached => ("CACHED ", BLUE),
            State::Failed => ("ERROR ", RED),
            State::Cancelled => ("CANCELED ", YELLOW),
            State::Done => ("", BLUE),
            State::Waiting | State::Running => ("", ""),
        };
        let text = format!(" => {word}{}", sanitise::line(&vertex.update.name));
        self.coloured(&timed(&text, vertex.elapsed(now).as_secs_f64(), size), colour)
    }

    fn transfers(&self, vertex: &VertexTrace, now: SystemTime, size: Size) -> Vec<String> {
        let open = vertex.statuses.iter().filter(|status| status.completed.is_none());
        open.map(|status| cut(&format!(" => => {}", status_text(status, now)), size.columns)).collect()
    }

    fn tail(&self, place: usize, size: Size) -> Vec<String> {
        let tail = self.tails.get(&place).into_iter().flatten();
        tail.map(|line| self.coloured(&cut(&format!(" => => # {line}"), size.columns), FAINT)).collect()
    }

    fn coloured(&self, text: &str, colour: &str) -> String {
        match self.style.colour && !colour.is_empty() {
            true => format!("{colour}{text}{RESET}"),
            false => text.to_owned(),
        }
    }
}

/// A line with a duration at its right end.
fn timed(text: &str, seconds: f64, size: Size) -> String {
    let time = format!(" {seconds:.1}s");
    let width = size.columns.saturating_sub(time.len());
    format!("{:width$}{time}", cut(text, width))
}

/// The beginning of a line that fits.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, at};
    use super::*;

    const SIZE: Size = Size { columns: 40, rows: 10 };

    fn show(script: Script, now: u64) -> String {
        let mut tty = Tty::new(Style { colour: false, log_lines: 2 }, at(0));
        script.events.iter().for_each(|(_, event)| tty.event(event));
        let mut lines = tty.settled(at(now), SIZE);
        lines.push("--".to_owned());
        lines.extend(tty.frame(at(now), SIZE));
        lines.join("\n")
    }

    #[test]
    fn running_steps_are_drawn_below_the_finished_ones() {
        let script = Script::default()
            .start(0, "a", "[internal] load build definition")
            .done(100, "a")
            .wait(100, "b", "[1/3] FROM busybox")
            .cached(100, "b")
            .wait(100, "d", "[3/3] COPY . /srv")
            .start(100, "c", "[2/3] RUN make something rather long")
            .status(150, "c", "downloading", 1_500_000, None)
            .log(200, "c", "one\ntwo\nthr\x1b[2Jee\n");
        insta::assert_snapshot!(show(script, 1300), @r"
         => [internal] load build definiti… 0.1s
         => CACHED [1/3] FROM busybox       0.0s
        --
        [+] Building 1.3s (2/4)
         => [2/3] RUN make something rathe… 1.2s
         => => downloading 1.50MB 1.1s
         => => # two
         => => # thr\x1b[2Jee
        ");
    }

    #[test]
    fn the_end_says_how_it_went() {
        let script =
            Script::default().start(0, "a", "RUN false").log(20, "a", "oh no\n").fail(1000, "a", "exit code: 1");
        let mut tty = Tty::new(Style { colour: false, log_lines: 6 }, at(0));
        script.events.iter().for_each(|(_, event)| tty.event(event));
        insta::assert_snapshot!(tty.finish(at(1000), SIZE), @r"
         => ERROR RUN false                 1.0s
        [+] Building 1.0s (1/1) ERROR
        ");
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let script = (0..20).fold(Script::default(), |script, n| script.start(0, &n.to_string(), "RUN x"));
        assert_eq!(show(script, 0).lines().count(), 1 + SIZE.rows - 1);
    }
}
