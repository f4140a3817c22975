use super::plain::Plain;
use super::tty::{Size, Style, Tty};
use super::{Mode, json};
use forge_session::{Event, EventSink};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// The pause between two drawings of the terminal display.
const FRAME: Duration = Duration::from_millis(100);
/// Step output beyond this that waits for a slow terminal is dropped, and said to be.
const MOST_WAITING: usize = 64 << 20;

/// The thread that writes progress to standard error.
///
/// A build never waits for it: events go through an unbounded queue, whose log bytes are capped.
pub struct Display(Option<Arc<Queue>>);

enum Message {
    Event(Event),
    End,
}

struct Queue {
    sender: Sender<Message>,
    waiting: Arc<AtomicUsize>,
    writer: Mutex<Writer>,
}

/// The thread is started by the first event: a command that has nothing to show does not pay for it.
enum Writer {
    Idle(Inbox, Mode, Style),
    Running(JoinHandle<()>),
    Gone,
}

impl Writer {
    fn start(&mut self) {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Idle(inbox, mode, style) => Self::Running(std::thread::spawn(move || show(&inbox, mode, style))),
            other => other,
        };
    }
}

fn show(inbox: &Inbox, mode: Mode, style: Style) {
    match mode {
        Mode::Tty => draw(inbox, style),
        Mode::RawJson => write_each(inbox, |event, _| json::line(event), |_| String::new(), String::new),
        _ => write_plain(inbox),
    }
}

struct Nowhere;

impl EventSink for Nowhere {
    fn emit(&self, _: Event) {}
}

impl EventSink for Queue {
    fn emit(&self, event: Event) {
        let event = match event {
            Event::Log { vertex, stream, data, timestamp } => {
                let before = self.waiting.fetch_add(data.len(), Ordering::Relaxed);
                let data = if before < MOST_WAITING { data } else { self.cut(data) };
                Event::Log { vertex, stream, data, timestamp }
            }
            other => other,
        };
        // The receiver is gone only after the display was told to end; nobody wants the event then.
        let _ = self.sender.send(Message::Event(event));
        self.writer().start();
    }
}

impl Queue {
    /// The writer is whole at every moment.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, data: Vec<u8>) -> Vec<u8> {
        const NOTE: &[u8] = b"[output clipped: the terminal does not keep up]\n";
        self.waiting.fetch_sub(data.len(), Ordering::Relaxed);
        self.waiting.fetch_add(NOTE.len(), Ordering::Relaxed);
        NOTE.to_vec()
    }
}

impl Display {
    /// Starts to show events.
    pub fn start(mode: Mode, style: Style) -> Self {
        if matches!(mode, Mode::Quiet | Mode::None) {
            return Self(None);
        }
        let (sender, receiver) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let inbox = Inbox { receiver, waiting: Arc::clone(&waiting) };
        Self(Some(Arc::new(Queue { sender, waiting, writer: Mutex::new(Writer::Idle(inbox, mode, style)) })))
    }

    /// Where events go.
    pub fn events(&self) -> Arc<dyn EventSink> {
        match &self.0 {
            Some(queue) => queue.clone(),
            None => Arc::new(Nowhere),
        }
    }

    /// Writes what was emitted until now, and ends.
    pub fn finish(self) {
        let Some(queue) = self.0 else { return };
        let writer = std::mem::replace(&mut *queue.writer(), Writer::Gone);
        if let Writer::Running(thread) = writer {
            // Neither fails unless the thread panicked, which has been reported by its own message.
            let _ = queue.sender.send(Message::End);
            let _ = thread.join();
        }
    }
}

struct Inbox {
    receiver: Receiver<Message>,
    waiting: Arc<AtomicUsize>,
}

/// What the writer finds when it looks for work.
enum Found {
    Event(Event),
    /// Nothing for the length of a frame.
    Pause,
    End,
}

impl Inbox {
    fn next(&self) -> Found {
        match self.receiver.recv_timeout(FRAME) {
            Ok(message) => self.open(message),
            Err(RecvTimeoutError::Timeout) => Found::Pause,
            Err(RecvTimeoutError::Disconnected) => Found::End,
        }
    }

    /// What is there already, without waiting.
    fn ready(&self) -> Option<Found> {
        self.receiver.try_recv().ok().map(|message| self.open(message))
    }

    fn open(&self, message: Message) -> Found {
        let Message::Event(event) = message else { return Found::End };
        if let Event::Log { data, .. } = &event {
            self.waiting.fetch_sub(data.len(), Ordering::Relaxed);
        }
        Found::Event(event)
    }
}

fn write_plain(inbox: &Inbox) {
    let plain = std::cell::RefCell::new(Plain::default());
    write_each(
        inbox,
        |event, now| plain.borrow_mut().event(event, now),
        |now| plain.borrow_mut().tick(now),
        || plain.borrow_mut().finish(),
    );
}

/// Writes text as events come; one write for all that are ready at once.
fn write_each(
    inbox: &Inbox,
    event_text: impl Fn(&Event, SystemTime) -> String,
    tick_text: impl Fn(SystemTime) -> String,
    last_text: impl Fn() -> String,
) {
    let mut over = false;
    while !over {
        let mut text = String::new();
        let mut found = Some(inbox.next());
        while let Some(next) = found {
            match next {
                Found::Event(event) => text += &event_text(&event, SystemTime::now()),
                Found::Pause => text += &tick_text(SystemTime::now()),
                Found::End => over = true,
            }
            found = if over { None } else { inbox.ready() };
        }
        write(&text);
    }
    write(&last_text());
}

/// Progress is worth nothing to a reader that went away, and no reason to end the build.
fn write(text: &str) {
    if !text.is_empty() {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

fn draw(inbox: &Inbox, style: Style) {
    let mut tty = Tty::new(style, SystemTime::now());
    let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let bar = screen.add(ProgressBar::no_length());
    bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is a constant that parses"));
    let (mut seen, mut over) = (false, false);
    let mut drawn: Option<SystemTime> = None;
    while !over {
        let mut found = Some(inbox.next());
        while let Some(next) = found {
            match next {
                Found::Event(event) => {
                    tty.event(&event);
                    seen = true;
                }
                Found::Pause => {}
                Found::End => over = true,
            }
            found = if over { None } else { inbox.ready() };
        }
        let now = SystemTime::now();
        let due = drawn.is_none_or(|at| now.duration_since(at).unwrap_or(FRAME) >= FRAME);
        if seen && due && !over {
            tty.settled(now, size()).iter().for_each(|line| drop(screen.println(line)));
            bar.set_message(tty.frame(now, size()).join("\n"));
            drawn = Some(now);
        }
    }
    bar.finish_and_clear();
    if seen {
        write(&tty.finish(SystemTime::now(), size()));
    }
}

fn size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => Size { columns: 80, rows: 24 },
    }
}
