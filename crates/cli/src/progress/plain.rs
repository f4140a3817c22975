use super::status_text;
use super::trace::{Change, LogLine, State, Trace, VertexTrace};
use crate::sanitise;
use forge_session::Event;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// Another step that has something to say waits this long for the open one to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// A step that is silent for this long after its start is opened, so that readers see what is being waited for.
const SILENCE: Duration = Duration::from_millis(500);
/// A running transfer is reported again after this long.
const STATUS_PAUSE: Duration = Duration::from_secs(5);

/// Numbered lines in BuildKit's shape, for logs: one step is open at a time, the others' lines wait.
#[derive(Default)]
pub struct Plain {
    trace: Trace,
    blocks: HashMap<usize, Block>,
    open: Option<usize>,
    /// The step of the last line.
    last: Option<usize>,
    next_number: usize,
    written: bool,
}

/// What stands in the log of one vertex, and what waits to be written.
#[derive(Default)]
struct Block {
    number: Option<usize>,
    waiting: Vec<String>,
    waiting_since: Option<SystemTime>,
    started: Option<SystemTime>,
    reported: HashMap<usize, (SystemTime, bool)>,
    closed: bool,
}

impl Plain {
    /// Takes an event and gives the text to write.
    pub fn event(&mut self, event: &Event, now: SystemTime) -> String {
        match self.trace.apply(event) {
            Change::State(place) => self.state(place, now),
            Change::Status(place, status) => self.status(place, status, now),
            Change::Lines(place, lines) => {
                let lines = lines.iter().map(log_text).collect();
                self.say(place, lines, now)
            }
            Change::Warning(place) => {
                let text =
                    self.trace.vertex(place).warnings.last().map(|notice| sanitise::line(&notice.short).into_owned());
                self.say(place, vec![format!("WARN: {}", text.unwrap_or_default())], now)
            }
            Change::None => String::new(),
        }
    }

    /// Gives the text that is due because time went by.
    pub fn tick(&mut self, now: SystemTime) -> String {
        let due = |since: Option<SystemTime>, pause| {
            since.is_some_and(|since| now.duration_since(since).unwrap_or_default() >= pause)
        };
        let others = self.blocks.iter().filter(|(place, block)| Some(**place) != self.open && !block.closed);
        let next = match self.open {
            Some(_) => others
                .filter(|(_, block)| due(block.waiting_since, PATIENCE))
                .min_by_key(|(_, block)| block.waiting_since),
            None => others.filter(|(_, block)| due(block.started, SILENCE)).min_by_key(|(_, block)| block.started),
        };
        match next.map(|(place, _)| *place) {
            Some(place) => self.write(place),
            None => String::new(),
        }
    }

    /// Gives what still waits. What a failed step said last comes with the error, not from here.
    pub fn finish(&mut self) -> String {
        let mut places: Vec<usize> = self.blocks.keys().copied().collect();
        places.sort_unstable();
        let mut text = String::new();
        for place in places {
            if !self.blocks[&place].waiting.is_empty() {
                text += &self.write(place);
            }
        }
        text
    }

    fn state(&mut self, place: usize, now: SystemTime) -> String {
        let block = self.blocks.entry(place).or_default();
        match (self.trace.vertex(place).state(), block.closed) {
            (State::Waiting, _) | (_, true) => String::new(),
            (State::Running, _) => {
                block.started.get_or_insert(now);
                String::new()
            }
            _ => self.close(place, now),
        }
    }

    fn close(&mut self, place: usize, now: SystemTime) -> String {
        let mut lines: Vec<String> = self.trace.drain(place).iter().map(log_text).collect();
        lines.push(end_text(self.trace.vertex(place), now));
        let block = self.blocks.entry(place).or_default();
        block.waiting.extend(lines);
        block.closed = true;
        let text = self.write(place);
        self.open = None;
        text + &self.reopen()
    }

    /// Opens the step that waits longest, if any has something to say.
    fn reopen(&mut self) -> String {
        let waiting = self.blocks.iter().filter(|(_, block)| !block.waiting.is_empty());
        match waiting.min_by_key(|(place, block)| (block.waiting_since, **place)).map(|(place, _)| *place) {
            Some(place) => self.write(place),
            None => String::new(),
        }
    }

    fn status(&mut self, place: usize, status: usize, now: SystemTime) -> String {
        let update = &self.trace.vertex(place).statuses[status];
        let (over, text) = (update.completed.is_some(), status_text(update, now));
        let block = self.blocks.entry(place).or_default();
        let due = match block.reported.get(&status) {
            Some((_, true)) => false,
            Some((at, false)) => over || now.duration_since(*at).unwrap_or_default() >= STATUS_PAUSE,
            None => over || update.current > 0,
        };
        if !due {
            return String::new();
        }
        block.reported.insert(status, (now, over));
        self.say(place, vec![text], now)
    }

    /// Writes lines of a step now where it is open or none is; keeps them otherwise.
    fn say(&mut self, place: usize, lines: Vec<String>, now: SystemTime) -> String {
        if lines.is_empty() {
            return String::new();
        }
        let block = self.blocks.entry(place).or_default();
        block.waiting.extend(lines);
        block.waiting_since.get_or_insert(now);
        match self.open {
            Some(open) if open != place => self.tick(now),
            _ => self.write(place),
        }
    }

    /// Makes a step the open one and writes what it has to say.
    fn write(&mut self, place: usize) -> String {
        let mut text = String::new();
        let number = self.number(place);
        // What is said of a step after its end goes on below it, unless another one spoke in between.
        let goes_on = self.open == Some(place) || (self.open.is_none() && self.last == Some(place));
        if !goes_on {
            text += &self.heading(place, number);
        }
        self.last = Some(place);
        let block = self.blocks.entry(place).or_default();
        block.waiting_since = None;
        for line in block.waiting.drain(..) {
            text += &format!("#{number} {line}\n");
        }
        self.open = (!block.closed).then_some(place);
        text
    }

    fn heading(&mut self, place: usize, number: usize) -> String {
        let left = match self.open {
            Some(open) => format!("#{} ...\n", self.number(open)),
            None => String::new(),
        };
        let gap = if self.written { "\n" } else { "" };
        self.written = true;
        format!("{left}{gap}#{number} {}\n", sanitise::line(&self.trace.vertex(place).update.name))
    }

    fn number(&mut self, place: usize) -> usize {
        let next = &mut self.next_number;
        *self.blocks.entry(place).or_default().number.get_or_insert_with(|| {
            *next += 1;
            *next
        })
    }
}

fn log_text(line: &LogLine) -> String {
    format!("{:.3} {}", line.after.as_secs_f64(), sanitise::log_line(&line.bytes))
}

fn end_text(vertex: &VertexTrace, now: SystemTime) -> String {
    match vertex.state() {
        State::Cached => "CACHED".to_owned(),
        State::Cancelled => "CANCELED".to_owned(),
        State::Failed => format!("ERROR: {}", sanitise::line(vertex.update.error.as_deref().unwrap_or_default())),
        _ => format!("DONE {:.1}s", vertex.elapsed(now).as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, at};
    use super::*;

    fn render(script: Script) -> String {
        let mut plain = Plain::default();
        let mut text = String::new();
        for (now, event) in script.events {
            text += &plain.tick(now);
            text += &plain.event(&event, now);
        }
        text + &plain.finish()
    }

    #[test]
    fn a_build_reads_as_buildkits() {
        let script = Script::default()
            .start(0, "a", "[internal] load build definition from Dockerfile")
            .status(20, "a", "transferring dockerfile:", 83, Some(20))
            .done(20, "a")
            .wait(20, "b", "[1/2] FROM busybox")
            .cached(21, "b")
            .start(30, "c", "[2/2] RUN echo hi")
            .log(153, "c", "hi\nthe")
            .log(160, "c", "re")
            .done(230, "c");
        insta::assert_snapshot!(render(script), @r"
        #1 [internal] load build definition from Dockerfile
        #1 transferring dockerfile: 83B done
        #1 DONE 0.0s

        #2 [1/2] FROM busybox
        #2 CACHED

        #3 [2/2] RUN echo hi
        #3 0.123 hi
        #3 0.130 there
        #3 DONE 0.2s
        ");
    }

    #[test]
    fn a_failure_ends_its_block() {
        let script = Script::default()
            .start(0, "a", "[2/2] RUN make")
            .log(100, "a", "compiling\n")
            .log(200, "a", "broken")
            .fail(300, "a", "process \"/bin/sh -c make\" did not complete successfully: exit code: 2");
        insta::assert_snapshot!(render(script), @r#"
        #1 [2/2] RUN make
        #1 0.100 compiling
        #1 0.200 broken
        #1 ERROR: process "/bin/sh -c make" did not complete successfully: exit code: 2
        "#);
    }

    #[test]
    fn parallel_steps_take_turns() {
        let script = Script::default()
            .start(0, "a", "RUN a")
            .start(0, "b", "RUN b")
            .log(100, "a", "a1\n")
            .log(200, "b", "b1\n")
            .log(300, "a", "a2\n")
            .log(5300, "b", "b2\n")
            .log(5400, "a", "a3\n")
            .done(5500, "b")
            .done(5600, "a");
        insta::assert_snapshot!(render(script), @r"
        #1 RUN a
        #1 0.100 a1
        #1 0.300 a2
        #1 ...

        #2 RUN b
        #2 0.200 b1
        #2 5.300 b2
        #2 DONE 5.5s

        #1 RUN a
        #1 5.400 a3
        #1 DONE 5.6s
        ");
    }

    #[test]
    fn a104_step_output_cannot_pass_for_progress() {
        let script =
            Script::default().start(0, "a", "RUN x\n#2 DONE").log(0, "a", "#1 DONE 0.0s\r\x1b[2K\n").done(10, "a");
        insta::assert_snapshot!(render(script), @r"
        #1 RUN x\x0a#2 DONE
        #1 0.000 \x1b[2K
        #1 DONE 0.0s
        ");
    }

    #[test]
    fn a_silent_step_is_shown_while_it_runs() {
        let script = Script::default().start(0, "a", "RUN sleep 9").start(100, "b", "RUN true").done(200, "b");
        let mut plain = Plain::default();
        let early: String = script.events.iter().map(|(now, event)| plain.event(event, *now)).collect();
        assert_eq!(early, "#1 RUN true\n#1 DONE 0.1s\n");
        assert_eq!(plain.tick(at(400)), "");
        assert_eq!(plain.tick(at(500)), "\n#2 RUN sleep 9\n");
        assert_eq!(plain.tick(at(9000)), "");
    }

    #[test]
    fn warnings_after_the_end_of_a_step_share_a_heading() {
        let script = Script::default().start(0, "a", "load").done(1, "a").start(2, "b", "ignore").done(3, "b");
        let mut plain = Plain::default();
        let mut text: String = script.events.iter().map(|(now, event)| plain.event(event, *now)).collect();
        let vertex = script.events.iter().find_map(|(_, event)| match event {
            Event::Vertex(update) => Some(update.digest.clone()),
            _ => None,
        });
        for short in ["one", "two"] {
            let (short, detail) = (short.to_owned(), Vec::new());
            let notice = forge_session::WarningNotice {
                vertex: vertex.clone(),
                level: 1,
                short,
                detail,
                url: None,
                span: None,
                excerpt: None,
            };
            text += &plain.event(&Event::Warning(notice), at(4));
        }
        assert_eq!(text, "#1 load\n#1 DONE 0.0s\n\n#2 ignore\n#2 DONE 0.0s\n\n#1 load\n#1 WARN: one\n#1 WARN: two\n");
    }

    #[test]
    fn cancelled_steps_say_so() {
        let script = Script::default().start(0, "a", "RUN sleep").fail(10, "a", "the build was cancelled");
        assert_eq!(render(script), "#1 RUN sleep\n#1 CANCELED\n");
    }
}
