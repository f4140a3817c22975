use crate::arriving::{Arriving, BlobFollower};
use crate::lease::now;
use crate::opened::Opened;
use crate::{Lease, StoreError};
use forge_image::{Digest, Hasher};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes by digest.
#[derive(Clone)]
pub struct Blobs {
    opened: Arc<Opened>,
}

impl Blobs {
    pub(crate) fn new(opened: Arc<Opened>) -> Self {
        Self { opened }
    }

    /// The size of a blob, if the store has it.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn stat(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(settle(&self.opened, digest)?.map(|(_, size)| size))
    }

    /// Opens a blob. Its size was checked; its digest was when it was written.
    ///
    /// # Errors
    /// [`StoreError::BlobNotFound`], or the database or the file system failed.
    pub fn open(&self, digest: &Digest) -> Result<File, StoreError> {
        Ok(self.find(digest)?.0)
    }

    /// The bytes of a small blob, verified.
    ///
    /// # Errors
    /// It is absent, larger than `limit`, or no longer what its digest says; in the last case the store forgets it.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (mut file, size) = self.find(digest)?;
        if size > limit {
            return Err(StoreError::BlobTooLarge { digest: digest.clone(), size, limit });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.read_to_end(&mut bytes).map_err(StoreError::io("read", self.path(digest)))?;
        let mut hash = Hash::like(Some(digest));
        hash.update(&bytes);
        let actual = hash.finish();
        if actual != *digest {
            self.remove(digest)?;
            return Err(StoreError::DamagedBlob { digest: digest.clone(), actual });
        }
        Ok(bytes)
    }

    /// Stores bytes that are at hand, and holds them.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn write(&self, bytes: &[u8], lease: &Lease) -> Result<Digest, StoreError> {
        let digest = Digest::sha256(bytes);
        if lease.hold_blob(&digest)? {
            return Ok(digest);
        }
        let mut writer = self.writer(Some((&digest, bytes.len() as u64)))?;
        writer.write_all(bytes).map_err(StoreError::io("write", &writer.path))?;
        writer.finish(lease)?;
        Ok(digest)
    }

    /// Begins a blob whose bytes arrive bit by bit. Where digest and size are known beforehand, nothing else is kept.
    ///
    /// # Errors
    /// The file system failed.
    pub fn writer(&self, expected: Option<(&Digest, u64)>) -> Result<BlobWriter, StoreError> {
        let path = self.opened.scratch_path("blob")?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(StoreError::io("create", &path))?;
        let hash = Hash::like(expected.map(|(digest, _)| digest));
        let expected = expected.map(|(digest, size)| (digest.clone(), size));
        let arriving = Arc::default();
        Ok(BlobWriter { opened: self.opened.clone(), path, file, hash, written: 0, expected, arriving })
    }

    /// Where a blob lies, whether it is there or not. Readers only: bytes come into place by [`BlobWriter::finish`].
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.opened.blob_path(digest)
    }

    /// Forgets a blob, whoever holds it: for bytes that turned out to be damaged. `false` if it was not there.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        forget(&self.opened, digest)
    }

    fn find(&self, digest: &Digest) -> Result<(File, u64), StoreError> {
        settle(&self.opened, digest)?.ok_or_else(|| StoreError::BlobNotFound { digest: digest.clone() })
    }
}

/// A blob on its way into the store; nothing of it is visible before [`BlobWriter::finish`].
pub struct BlobWriter {
    opened: Arc<Opened>,
    path: PathBuf,
    file: File,
    hash: Hash,
    written: u64,
    expected: Option<(Digest, u64)>,
    arriving: Arc<Arriving>,
}

impl BlobWriter {
    /// Reads along while the blob is written. Reading ends well only when [`BlobWriter::finish`] has.
    ///
    /// # Errors
    /// The file system failed.
    pub fn follow(&self) -> Result<BlobFollower, StoreError> {
        let file = File::open(&self.path).map_err(StoreError::io("open", &self.path))?;
        Ok(BlobFollower::new(file, self.arriving.clone()))
    }

    /// Opens what was written so far, to be read at any place.
    pub(crate) fn reader(&self) -> Result<File, StoreError> {
        File::open(&self.path).map_err(StoreError::io("open", &self.path))
    }

    /// Whether what was written is what was announced, as [`BlobWriter::finish`] will find. The writer can begin anew
    /// where it is not.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`], [`StoreError::DigestMismatch`].
    pub fn check(&self) -> Result<(), StoreError> {
        let Some((digest, size)) = &self.expected else { return Ok(()) };
        if *size != self.written {
            return Err(StoreError::SizeMismatch { digest: digest.clone(), expected: *size, actual: self.written });
        }
        let actual = self.hash.clone().finish();
        match actual == *digest {
            true => Ok(()),
            false => Err(StoreError::DigestMismatch { expected: digest.clone(), actual }),
        }
    }

    /// Verifies size and digest, moves the file into place and holds the blob, all or nothing.
    ///
    /// # Errors
    /// The bytes are not the announced ones ([`StoreError::SizeMismatch`], [`StoreError::DigestMismatch`]; nothing is
    /// kept), or the file system or the database failed.
    pub fn finish(mut self, lease: &Lease) -> Result<(Digest, u64), StoreError> {
        self.check()?;
        let actual = std::mem::replace(&mut self.hash, Hash::like(None)).finish();
        publish(&self.opened, &self.path, &actual, self.written, lease)?;
        self.arriving.whole();
        Ok((actual, self.written))
    }

    /// The number of bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What the blob was announced as.
    pub fn expected(&self) -> Option<(&Digest, u64)> {
        self.expected.as_ref().map(|(digest, size)| (digest, *size))
    }

    /// Drops what was written and begins again, for a source that cannot resume.
    ///
    /// # Errors
    /// The file system failed.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        let restart = |file: &mut File| {
            file.set_len(0)?;
            io::Seek::rewind(file)
        };
        restart(&mut self.file).map_err(StoreError::io("truncate", &self.path))?;
        self.hash = Hash::like(self.expected.as_ref().map(|(digest, _)| digest));
        self.written = 0;
        // Those who read along have read what no longer counts.
        std::mem::take(&mut self.arriving).broken();
        Ok(())
    }
}

impl Write for BlobWriter {
    /// Refuses the first byte beyond the announced size, so that a liar cannot fill the disk (A67). The error's
    /// inner error is a [`StoreError::SizeMismatch`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some((digest, size)) = &self.expected
            && bytes.len() as u64 > size - self.written
        {
            let (digest, expected) = (digest.clone(), *size);
            return Err(io::Error::other(StoreError::SizeMismatch { digest, expected, actual: expected + 1 }));
        }
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.written += count as u64;
        self.arriving.reached(self.written);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        self.arriving.broken();
        // Gone already where it was published; otherwise it goes with the owner's scratch folder at the latest.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A hash of the algorithm that a digest names.
#[derive(Clone)]
enum Hash {
    Sha256(Box<Hasher>),
    Sha512(Box<sha2::Sha512>),
}

impl Hash {
    fn like(digest: Option<&Digest>) -> Self {
        match digest.map(Digest::algorithm) {
            Some("sha512") => Self::Sha512(Box::default()),
            _ => Self::Sha256(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => hash.finish(),
            Self::Sha512(hash) => format!("sha512:{}", hex::encode(hash.finalize()))
                .parse()
                .expect("a prefix and 128 hexadecimal digits are a digest"),
        }
    }
}

/// The record of a blob.
pub(crate) struct BlobRow {
    size: u64,
    boot_id: Option<String>,
}

impl BlobRow {
    /// Whether a power cut since the bytes were written can have taken them.
    fn is_suspect(&self, opened: &Opened) -> bool {
        self.boot_id.as_ref().is_some_and(|boot| boot != opened.boot_id())
    }
}

pub(crate) fn row(connection: &Connection, digest: &Digest) -> Result<Option<BlobRow>, StoreError> {
    let mut select = connection.prepare_cached("SELECT size, boot_id FROM blobs WHERE digest = ?1")?;
    let row = select
        .query_row([digest.as_str()], |row| Ok(BlobRow { size: row.get::<_, i64>(0)? as u64, boot_id: row.get(1)? }));
    Ok(row.optional()?)
}

/// Records a blob that was read from the disk and found to be what its digest says.
pub(crate) fn insert_durable(connection: &Connection, digest: &Digest, size: u64) -> Result<(), StoreError> {
    let sql = "INSERT INTO blobs (digest, size, stored, boot_id) VALUES (?1, ?2, ?3, NULL)";
    connection.prepare_cached(sql)?.execute(params![digest.as_str(), size.cast_signed(), now()])?;
    Ok(())
}

/// Opens a blob that has a record and the right size. One that a power cut may have damaged is hashed once, then it is
/// as good as any or forgotten.
pub(crate) fn settle(opened: &Opened, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
    let Some(row) = opened.database().read(|connection| row(connection, digest))? else { return Ok(None) };
    let path = opened.blob_path(digest);
    let Some(mut file) = open_with_size(&path, row.size)? else { return Ok(None) };
    if row.is_suspect(opened) {
        if hash_of(&mut file, digest).map_err(StoreError::io("read", &path))? != *digest {
            forget(opened, digest)?;
            return Ok(None);
        }
        // What was read after a boot came from the disk.
        opened.database().write(|transaction| {
            let sql = "UPDATE blobs SET boot_id = NULL WHERE digest = ?1 AND boot_id = ?2";
            transaction.prepare_cached(sql)?.execute(params![digest.as_str(), row.boot_id])?;
            Ok(())
        })?;
    }
    Ok(Some((file, row.size)))
}

fn open_with_size(path: &Path, size: u64) -> Result<Option<File>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    let found = file.metadata().map_err(StoreError::io("inspect", path))?;
    Ok((found.is_file() && found.len() == size).then_some(file))
}

/// What the file hashes to, by the algorithm of a digest.
pub(crate) fn hash_of(file: &mut File, digest: &Digest) -> io::Result<Digest> {
    let mut hash = Hash::like(Some(digest));
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    io::Seek::rewind(file)?;
    Ok(hash.finish())
}

/// Moves verified bytes into place. The rename happens inside the write transaction: between the two no collection
/// can run, which removes files without a record.
fn publish(opened: &Opened, from: &Path, digest: &Digest, size: u64, lease: &Lease) -> Result<(), StoreError> {
    let path = opened.blob_path(digest);
    opened.database().write(|transaction| {
        let good = match row(transaction, digest)? {
            Some(row) if !row.is_suspect(opened) => open_with_size(&path, row.size)?.is_some(),
            _ => false,
        };
        if !good {
            std::fs::rename(from, &path).map_err(StoreError::io("move into place", &path))?;
            let sql = "INSERT OR REPLACE INTO blobs (digest, size, stored, boot_id) VALUES (?1, ?2, ?3, ?4)";
            let row = params![digest.as_str(), size as i64, now(), opened.boot_id()];
            transaction.prepare_cached(sql)?.execute(row)?;
        }
        lease.insert_blob(transaction, digest)
    })
}

/// The record goes before the file, and both inside one write transaction, see [`publish`].
fn forget(opened: &Opened, digest: &Digest) -> Result<bool, StoreError> {
    let deleted = opened.database().write(|transaction| {
        transaction.prepare_cached("DELETE FROM layer_blobs WHERE blob = ?1")?.execute([digest.as_str()])?;
        Ok(transaction.prepare_cached("DELETE FROM blobs WHERE digest = ?1")?.execute([digest.as_str()])?)
    })?;
    opened.database().write(|transaction| {
        let path = opened.blob_path(digest);
        match row(transaction, digest)? {
            Some(_) => Ok(()),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
                _ => Ok(()),
            },
        }
    })?;
    Ok(deleted > 0)
}
