use crate::RegistryError;
use bytes::Bytes;
use forge_image::Descriptor;
use forge_store::{BlobWriter, Lease, StoreError};
use std::io::{self, Write as _};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Writes a blob on a thread of its own: the store blocks, the network must not. When the sink is dropped, the thread ends
/// and the writer removes what it wrote.
pub(crate) struct Sink {
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<Result<BlobWriter, WriteError>>>,
}

enum Order {
    Write(Bytes),
    Restart,
    /// Answers when everything before is written: whether it is what was announced.
    Check(oneshot::Sender<Result<(), StoreError>>),
}

enum WriteError {
    Io(io::Error),
    Store(StoreError),
}

/// Pieces on their way between network and disk: bounds memory, evens out hiccups of either side.
const QUEUE: usize = 32;

impl Sink {
    pub(crate) fn new(writer: BlobWriter) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE);
        Self { orders, thread: Some(tokio::task::spawn_blocking(move || obey(writer, queue))) }
    }

    pub(crate) async fn write(&mut self, bytes: Bytes, descriptor: &Descriptor) -> Result<(), RegistryError> {
        self.order(Order::Write(bytes), descriptor).await
    }

    /// Drops what was written.
    pub(crate) async fn restart(&mut self, descriptor: &Descriptor) -> Result<(), RegistryError> {
        self.order(Order::Restart, descriptor).await
    }

    /// Waits until everything is written. Whether it is what was announced is a verdict on the server at `url`.
    pub(crate) async fn check(&mut self, descriptor: &Descriptor, url: &str) -> Result<(), RegistryError> {
        let (verdict, answer) = oneshot::channel();
        self.order(Order::Check(verdict), descriptor).await?;
        match answer.await {
            Ok(verdict) => verdict.map_err(|error| blame_server(error, descriptor, url)),
            Err(_) => self.join(descriptor).await.map(drop),
        }
    }

    async fn order(&mut self, order: Order, descriptor: &Descriptor) -> Result<(), RegistryError> {
        match self.orders.send(order).await {
            Ok(()) => Ok(()),
            // The thread has ended, which it does before its queue is closed only with an error.
            Err(_) => self.join(descriptor).await.map(drop),
        }
    }

    async fn join(&mut self, descriptor: &Descriptor) -> Result<BlobWriter, RegistryError> {
        let thread = self.thread.take().expect("joined once: by `finish`, or by the order that failed");
        let digest = || descriptor.digest.clone();
        match thread.await {
            Ok(Ok(writer)) => Ok(writer),
            Ok(Err(WriteError::Io(source))) => Err(RegistryError::Write { digest: digest(), source }),
            Ok(Err(WriteError::Store(source))) => Err(RegistryError::Store { digest: digest(), source }),
            Err(panic) => Err(RegistryError::Write { digest: digest(), source: io::Error::other(panic) }),
        }
    }

    /// Verifies the blob and puts it into its place.
    pub(crate) async fn finish(
        mut self,
        descriptor: &Descriptor,
        lease: &Lease,
        url: &str,
    ) -> Result<(), RegistryError> {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.orders, closed));
        let writer = self.join(descriptor).await?;
        let finished = blocking(|| writer.finish(lease));
        finished.map(drop).map_err(|error| blame_server(error, descriptor, url))
    }
}

fn obey(mut writer: BlobWriter, mut queue: mpsc::Receiver<Order>) -> Result<BlobWriter, WriteError> {
    if writer.written() > 0 {
        writer.restart().map_err(WriteError::Store)?;
    }
    while let Some(order) = queue.blocking_recv() {
        match order {
            Order::Write(bytes) => writer.write_all(&bytes).map_err(WriteError::Io)?,
            // Who asked has gone only when the whole transfer was given up.
            Order::Check(verdict) => drop(verdict.send(writer.check())),
            Order::Restart => writer.restart().map_err(WriteError::Store)?,
        }
    }
    Ok(writer)
}

/// Runs what blocks but borrows, and so cannot go to another thread: on a runtime of many threads its other tasks are moved
/// away first.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// The store's verdict on the bytes is one on the server.
fn blame_server(error: StoreError, descriptor: &Descriptor, url: &str) -> RegistryError {
    let url = url.to_owned();
    match error {
        StoreError::DigestMismatch { expected, actual } => {
            RegistryError::DigestMismatch { url, expected, found: actual }
        }
        StoreError::SizeMismatch { digest, expected, actual } => {
            RegistryError::SizeMismatch { url, digest, expected, found: actual }
        }
        source => RegistryError::Store { digest: descriptor.digest.clone(), source },
    }
}
