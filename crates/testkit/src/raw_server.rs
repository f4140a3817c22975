use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A TCP server that writes whatever a test wants, for answers that no HTTP library would produce.
///
/// Each connection runs on a thread of its own; the request's head is read and kept before the answer is written.
pub struct RawServer {
    authority: String,
    stop: Arc<AtomicBool>,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl RawServer {
    /// Starts a server on 127.0.0.1. `answer` is given the stream and the head of the request.
    pub fn start(answer: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1", answer)
    }

    /// Starts a server on another loopback address.
    pub fn start_on(address: &str, answer: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a loopback port");
        let authority = listener.local_addr().expect("the listener is bound").to_string();
        let (stop, heads, connections) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let server = Self { authority, stop: stop.clone(), heads: heads.clone(), connections: connections.clone() };
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                connections.fetch_add(1, Ordering::SeqCst);
                let (answer, heads) = (answer.clone(), heads.clone());
                thread::spawn(move || {
                    let head = read_head(&stream);
                    heads.lock().unwrap().push(head.clone());
                    answer(&mut stream, &head);
                });
            }
        });
        server
    }

    /// `127.0.0.1:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The heads of all requests so far; an empty one where the client sent something else than HTTP.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Writes an answer with its length and closes the connection.
    pub fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
        // The client may have gone, which is what some tests want.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.authority);
    }
}

/// Reads up to the empty line, 64 KiB at most.
fn read_head(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut head = String::new();
    while let Ok(read) = reader.read_line(&mut head) {
        if read <= 2 {
            break;
        }
    }
    head
}
