//! Opens what a stream of bytes is written to, so that a failure leaves what was there.

use crate::request::ArchiveWriter;
use crate::{Destination, EngineError, Metadata};
use forge_image::ErrorKind;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

/// Tar headers are small and many.
const BUFFER: usize = 1 << 20;

/// A stream that can be written to, and what makes it count when it is complete.
pub struct OpenedDestination {
    /// Where the bytes go. Refuses them once the work is cancelled.
    pub stream: ArchiveWriter,
    /// To be completed when all bytes are written.
    pub end: End,
}

/// What has to happen when all bytes are written. Dropped before, it leaves nothing behind.
pub enum End {
    /// Nothing: a pipe, a device and standard output have what was written.
    Nothing,
    /// The new file takes its place.
    Replace {
        /// The new file.
        file: NamedTempFile,
        /// The place.
        path: PathBuf,
    },
}

/// Opens a destination for writing; `metadata` is told to whoever takes a stream. May block.
///
/// # Errors
/// It cannot be written.
pub fn open(
    destination: &Destination,
    metadata: &Metadata,
    cancel: &CancellationToken,
) -> Result<OpenedDestination, EngineError> {
    match destination {
        Destination::Stdout => {
            // Not `Stdout`, which looks for ends of lines in what is no text.
            let copy = io::stdout().as_fd().try_clone_to_owned().map_err(EngineError::io)?;
            Ok(opened(File::from(copy), End::Nothing, cancel))
        }
        Destination::Stream(stream) => match stream.take(metadata).map_err(EngineError::io)? {
            Some(stream) => {
                let stream = Cancellable { inner: stream, cancel: cancel.clone() };
                Ok(OpenedDestination { stream: Box::new(BufWriter::with_capacity(BUFFER, stream)), end: End::Nothing })
            }
            None => Err(EngineError::new(ErrorKind::Internal, "the stream of an output is written once only")),
        },
        Destination::File(path) => open_file(path, cancel).map_err(|error| cannot_write(path, error)),
        Destination::Directory(path) => {
            let message = format!("{} is a folder, but this output is one stream", path.display());
            Err(EngineError::new(ErrorKind::UserInput, message))
        }
    }
}

fn cannot_write(path: &Path, error: io::Error) -> EngineError {
    EngineError::io(error).context(&format!("cannot write {}", path.display()))
}

fn opened(file: File, end: End, cancel: &CancellationToken) -> OpenedDestination {
    let stream = Cancellable { inner: file, cancel: cancel.clone() };
    OpenedDestination { stream: Box::new(BufWriter::with_capacity(BUFFER, stream)), end }
}

fn open_file(path: &Path, cancel: &CancellationToken) -> io::Result<OpenedDestination> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        // A device must not be replaced by a file, and what waits at a pipe wants the bytes there.
        Ok(found) if !found.is_file() => Ok(opened(OpenOptions::new().write(true).open(path)?, End::Nothing, cancel)),
        // A link stays, and what it leads to is replaced.
        Ok(_) => replace(fs::canonicalize(path)?, cancel),
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path.to_owned(), cancel),
        Err(error) => Err(error),
    }
}

/// A new file beside the old one, under a name that nobody can guess.
fn replace(path: PathBuf, cancel: &CancellationToken) -> io::Result<OpenedDestination> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(folder)?;
    let prefix = format!(".{}.", name.to_string_lossy());
    let mut builder = tempfile::Builder::new();
    // As any program makes a file: the umask takes its part.
    let file = builder.prefix(&prefix).permissions(Permissions::from_mode(0o666)).tempfile_in(folder);
    // Without the name of the temporary file, which nobody asked for.
    let file = file.map_err(|error| io::Error::from(error.kind()))?;
    let stream = file.as_file().try_clone()?;
    Ok(opened(stream, End::Replace { file, path }, cancel))
}

impl End {
    /// Puts a complete file in its place; it survives a power cut. May block.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn complete(self) -> Result<(), EngineError> {
        let Self::Replace { file, path } = self else { return Ok(()) };
        let placed = file.as_file().sync_all().and_then(|()| file.persist(&path).map_err(|error| error.error));
        placed.map(drop).map_err(|error| cannot_write(&path, error))
    }
}

/// Ends the work of a thread that nobody waits for any more.
struct Cancellable<W> {
    inner: W,
    cancel: CancellationToken,
}

impl<W: Write> Write for Cancellable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.cancel.is_cancelled() {
            true => Err(io::Error::other("cancelled")),
            false => self.inner.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn open_at(path: &Path) -> Result<OpenedDestination, EngineError> {
        open(&Destination::File(path.to_owned()), &Metadata::new(), &CancellationToken::new())
    }

    fn write(path: &Path, bytes: &[u8]) {
        let OpenedDestination { mut stream, end } = open_at(path).unwrap();
        stream.write_all(bytes).unwrap();
        stream.flush().unwrap();
        end.complete().unwrap();
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.tar");
        fs::write(&path, "old").unwrap();
        let OpenedDestination { mut stream, end } = open_at(&path).unwrap();
        stream.write_all(b"half").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop((stream, end));
        assert_eq!((names(folder.path()), fs::read(&path).unwrap()), (vec!["out.tar".to_owned()], b"old".to_vec()));
        write(&path, b"new");
        assert_eq!((names(folder.path()), fs::read(&path).unwrap()), (vec!["out.tar".to_owned()], b"new".to_vec()));
        assert_ne!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    // Fails where whatever the path names is replaced: `dest=/dev/null` would put a file there.
    #[test]
    fn pipes_and_devices_are_written_to_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        std::os::unix::fs::symlink("pipe", &link).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mut reader = File::from(rustix::fs::open(&pipe, flags, rustix::fs::Mode::empty()).unwrap());
        for path in [&pipe, &link] {
            write(path, b"through");
            assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
            let mut bytes = [0; 7];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"through");
        }
    }

    #[test]
    fn links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write(&link, b"new");
        assert_eq!((fs::read(&real).unwrap(), fs::read_link(&link).unwrap()), (b"new".to_vec(), "real".into()));
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none/out.tar");
        let told = |path: &Path| open_at(path).err().unwrap().to_string();
        assert_eq!(
            told(&missing),
            format!("cannot write {}: No such file or directory (os error 2)", missing.display())
        );
        assert_eq!(told(folder.path()), format!("cannot write {}: is a directory", folder.path().display()));
    }

    #[test]
    fn nothing_more_is_written_after_cancellation() {
        let cancel = CancellationToken::new();
        let mut stream = Cancellable { inner: Vec::new(), cancel: cancel.clone() };
        stream.write_all(b"a").unwrap();
        cancel.cancel();
        assert!(stream.write_all(b"b").is_err());
        assert_eq!(stream.inner, b"a");
    }
}
