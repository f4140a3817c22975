//! The bytes of a download on their way to the disk.

use super::error::RemoteError;
use flate2::write::MultiGzDecoder;
use forge_image::Digest;
use forge_registry::{ContentHash, WebPacking};
use forge_store::Layers;
use std::fs::File;
use std::io::{self, Write};

/// As large as a layer may be.
const MOST_BYTES: u64 = 256 << 30;

/// A download while it comes in: unpacked, hashed and written.
pub(super) struct Receiving {
    to: Way,
    received: u64,
    layers: Layers,
}

enum Way {
    Plain(Box<Target>),
    Gzip(Box<MultiGzDecoder<Target>>),
}

/// Where the file's own bytes go.
struct Target {
    file: File,
    hasher: ContentHash,
    size: u64,
}

/// Why a download cannot be kept.
#[derive(Debug)]
pub(super) enum Unkept {
    /// It is larger than what is taken.
    TooLarge,
    /// It expands to more than what is taken from strangers.
    Expands(forge_store::StoreError),
    /// It is damaged, or the disk refuses.
    Io(io::Error),
}

impl Unkept {
    pub(super) fn of(self, url: String) -> RemoteError {
        match self {
            Self::TooLarge => RemoteError::TooLarge { url, limit: MOST_BYTES },
            Self::Expands(error) => RemoteError::Store(error),
            Self::Io(source) => RemoteError::Write { what: url, source },
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The page cache takes it: what is written is no more than what the network brings.
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Receiving {
    pub(super) fn new(file: File, hasher: ContentHash, packing: WebPacking, layers: Layers) -> Self {
        let target = Target { file, hasher, size: 0 };
        let to = match packing {
            WebPacking::Plain => Way::Plain(Box::new(target)),
            WebPacking::Gzip => Way::Gzip(Box::new(MultiGzDecoder::new(target))),
        };
        Self { to, received: 0, layers }
    }

    /// The bytes that came, packed as they came.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Takes what came.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Unkept> {
        self.received += bytes.len() as u64;
        let (written, size) = match &mut self.to {
            Way::Plain(target) => (target.write_all(bytes), target.size),
            Way::Gzip(unpacking) => (unpacking.write_all(bytes), unpacking.get_ref().size),
        };
        written.map_err(Unkept::Io)?;
        if size > MOST_BYTES {
            return Err(Unkept::TooLarge);
        }
        match &self.to {
            Way::Plain(_) => Ok(()),
            Way::Gzip(_) => self.layers.check_unpacked(size, self.received).map_err(Unkept::Expands),
        }
    }

    /// Digest and size of the file.
    pub(super) fn finish(self) -> Result<(Digest, u64), Unkept> {
        let target = match self.to {
            Way::Plain(target) => *target,
            Way::Gzip(unpacking) => unpacking.finish().map_err(Unkept::Io)?,
        };
        Ok((target.hasher.finish(), target.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_store::{Store, UnpackLimits};
    use std::io::Read;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(bytes, flate2::Compression::default()).read_to_end(&mut packed).unwrap();
        packed
    }

    fn receive(packing: WebPacking, bytes: &[u8]) -> Result<(Digest, u64), Unkept> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let limits = UnpackLimits { ratio: 10, ratio_floor: 1 << 10, ..UnpackLimits::default() };
        let file = tempfile::tempfile().unwrap();
        let mut receiving = Receiving::new(file, ContentHash::default(), packing, store.layers().with_limits(limits));
        bytes.chunks(7).try_for_each(|chunk| receiving.take(chunk))?;
        assert_eq!(receiving.received(), bytes.len() as u64);
        receiving.finish()
    }

    #[test]
    fn what_comes_packed_is_known_by_what_it_holds() {
        let text = b"some text, some more text";
        assert_eq!(receive(WebPacking::Gzip, &gzip(text)).unwrap(), (Digest::sha256(text), text.len() as u64));
        let packed = gzip(text);
        assert_eq!(receive(WebPacking::Plain, &packed).unwrap(), (Digest::sha256(&packed), packed.len() as u64));
    }

    #[test]
    fn a58_what_is_cut_off_or_expands_too_much_is_refused() {
        let packed = gzip(b"some text, some more text");
        assert!(matches!(receive(WebPacking::Gzip, &packed[..packed.len() - 3]), Err(Unkept::Io(_))));
        assert!(matches!(receive(WebPacking::Gzip, b"no gzip at all"), Err(Unkept::Io(_))));
        assert!(matches!(receive(WebPacking::Gzip, &gzip(&[0; 1 << 20])), Err(Unkept::Expands(_))));
    }
}
