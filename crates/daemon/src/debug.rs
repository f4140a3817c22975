//! Pages for whoever looks into a daemon that hangs, at the addresses where Go programs have theirs.

use crate::builds::Builds;
use crate::listen::Listener;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;

/// Answers until the listener's future is dropped.
pub(crate) async fn serve(listener: Listener, builds: Arc<Builds>) {
    let (mut connections, _file) = listener.incoming();
    while let Some(accepted) = connections.next().await {
        let Ok(connection) = accepted else { continue };
        let builds = builds.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let answer = page(&request, &builds);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A reader that goes away is no loss.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), answer).await;
        });
    }
}

fn page<B>(request: &Request<B>, builds: &Builds) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        // There are no goroutines; what runs is what the reader is after.
        "/debug/pprof/goroutine" | "/debug/builds" => (StatusCode::OK, builds.describe()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
