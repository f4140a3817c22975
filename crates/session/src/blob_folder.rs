use async_trait::async_trait;
use forge_image::Digest;
use std::fs::File;
use std::io::{self, Write};

/// Blobs by digest, kept by whoever asked for the build. Nobody here knows where they are.
#[async_trait]
pub trait BlobFolder: Send + Sync {
    /// What users know it by.
    fn name(&self) -> String;

    /// Writes the bytes of a blob; whether they are the right ones is for the caller to say.
    ///
    /// # Errors
    /// There is no such blob ([`io::ErrorKind::NotFound`]), or it cannot be had.
    async fn read(&self, digest: &Digest, into: &mut (dyn Write + Send)) -> io::Result<()>;

    /// Has a blob there, read from the start of a file; nothing where it is there already.
    ///
    /// # Errors
    /// It cannot be written.
    async fn write(&self, digest: &Digest, from: File) -> io::Result<()>;
}
