use super::Reply;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::Response;
use hyper::body::Frame;
use std::io;
use std::time::Duration;

pub(super) type ReplyBody = UnsyncBoxBody<Bytes, io::Error>;

/// How far the body of an answer is.
struct Progress {
    reply: Reply,
    at: usize,
}

/// Turns an answer into what hyper sends.
pub(super) fn into_response(reply: Reply, head: bool) -> Response<ReplyBody> {
    let mut builder = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        builder = builder.header(name, value);
    }
    let sized = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if !sized && !reply.chunked && !matches!(reply.status, 204 | 304) {
        builder = builder.header("content-length", reply.body.len());
    }
    let reply = if head { Reply { body: Vec::new(), ..reply } } else { reply };
    let frames = stream::unfold(Progress { reply, at: 0 }, next);
    builder.body(UnsyncBoxBody::new(StreamBody::new(frames))).expect("scripts set valid headers")
}

async fn next(mut progress: Progress) -> Option<(Result<Frame<Bytes>, io::Error>, Progress)> {
    let Progress { reply, at } = &progress;
    let stop = reply.cut_after.or(reply.stall_after).unwrap_or(usize::MAX);
    if *at >= stop && reply.stall_after.is_some() {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    if *at >= stop {
        // What was sent before must leave before the connection breaks.
        tokio::time::sleep(Duration::from_millis(20)).await;
        return Some((Err(io::Error::other("cut by the test")), progress));
    }
    if *at >= reply.body.len() {
        return None;
    }
    let (piece, pause) = reply.trickle.unwrap_or((64 << 10, Duration::ZERO));
    let end = (at + piece).min(reply.body.len()).min(stop);
    let bytes = Bytes::copy_from_slice(&reply.body[*at..end]);
    if !pause.is_zero() && *at > 0 {
        tokio::time::sleep(pause).await;
    }
    progress.at = end;
    Some((Ok(Frame::data(bytes)), progress))
}
