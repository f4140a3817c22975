use super::Received;
use std::sync::Arc;
use std::time::Duration;

/// An answer, and how it is sent.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers. `content-length` is added where it is missing and the body is not `chunked`.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
    /// Waits before the head is sent.
    pub delay: Duration,
    /// Breaks the connection after that many bytes of the body.
    pub cut_after: Option<usize>,
    /// Sends nothing more after that many bytes of the body, and keeps the connection.
    pub stall_after: Option<usize>,
    /// Sends the body in pieces of that many bytes, with a pause after each.
    pub trickle: Option<(usize, Duration)>,
    /// Sends the body without its length.
    pub chunked: bool,
    /// Breaks the connection before anything is sent.
    pub hang_up: bool,
}

impl Reply {
    /// An empty answer.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Sets a header in place of one of the same name.
    pub fn set_header(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Sets a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.set_header(name, value);
        self
    }

    /// Sets the body.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }
}

type Amend = Arc<dyn Fn(&Received, &mut Reply) + Send + Sync>;

/// What a registry does to certain requests instead of, or after, answering them well.
///
/// The first script that fits a request and is not used up applies.
#[derive(Clone)]
pub struct Script {
    method: String,
    path: String,
    skip: usize,
    times: usize,
    instead: Option<Reply>,
    amend: Option<Amend>,
    upload: UploadFate,
}

/// What becomes of a request's body on its way in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UploadFate {
    /// The connection breaks after that many bytes; an upload keeps them, as real registries do.
    pub cut_after: Option<usize>,
    /// Waits for so long after each piece that is read.
    pub pause: Duration,
}

impl Script {
    /// For requests of a method whose path and query contain a text; an empty one fits everything.
    pub fn on(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            skip: 0,
            times: usize::MAX,
            instead: None,
            amend: None,
            upload: UploadFate::default(),
        }
    }

    /// Applies to that many requests only.
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Lets that many requests pass first.
    pub fn skip(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// Answers without doing what the request asks for.
    pub fn reply(self, reply: Reply) -> Self {
        Self { instead: Some(reply), ..self }
    }

    /// Changes the answer, after what was said before.
    pub fn amend(self, amend: impl Fn(&Received, &mut Reply) + Send + Sync + 'static) -> Self {
        let before = self.amend;
        let both: Amend = Arc::new(move |request, reply| {
            if let Some(before) = &before {
                before(request, reply);
            }
            amend(request, reply);
        });
        Self { amend: Some(both), ..self }
    }

    /// Breaks the connection after that many bytes of the body.
    pub fn cut_after(self, bytes: usize) -> Self {
        self.amend(move |_, reply| reply.cut_after = Some(bytes))
    }

    /// Sends nothing more after that many bytes of the body.
    pub fn stall_after(self, bytes: usize) -> Self {
        self.amend(move |_, reply| reply.stall_after = Some(bytes))
    }

    /// Breaks the connection without an answer.
    pub fn hang_up(self) -> Self {
        self.reply(Reply { hang_up: true, ..Reply::default() })
    }

    /// Sends another body.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        self.amend(move |_, reply| {
            reply.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
            reply.body.clone_from(&body);
        })
    }

    /// Sets a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.amend(move |_, reply| reply.set_header(&name, &value))
    }

    /// Sends the client to another address, with 307.
    pub fn redirect(self, target: &str) -> Self {
        self.reply(Reply::status(307).header("location", target))
    }

    /// Breaks the connection after that many bytes of the request's body. An upload keeps what arrived.
    pub fn cut_upload_after(mut self, bytes: usize) -> Self {
        self.upload.cut_after = Some(bytes);
        self
    }

    /// Reads the request's body slowly: waits after each piece.
    pub fn slow_upload(mut self, pause: Duration) -> Self {
        self.upload.pause = pause;
        self
    }

    /// Waits before it answers.
    pub fn delay(self, delay: Duration) -> Self {
        self.amend(move |_, reply| reply.delay = delay)
    }

    pub(super) fn upload(&self) -> UploadFate {
        self.upload
    }

    pub(super) fn take(&mut self, request: &Received) -> Option<Self> {
        let fits = self.method == request.method && request.target().contains(&self.path) && self.times > 0;
        if !fits {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.clone())
    }

    pub(super) fn instead(&self) -> Option<Reply> {
        self.instead.clone()
    }

    pub(super) fn apply(&self, request: &Received, reply: &mut Reply) {
        if let Some(amend) = &self.amend {
            amend(request, reply);
        }
    }
}
