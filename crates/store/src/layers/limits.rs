use super::error::LayerError;

/// How much a stranger's layer may ask of this machine (A58 to A60).
///
/// The defaults are far beyond any image seen in practice, and far below what fills a disk unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of the uncompressed tar.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one, once [`ratio_floor`](Self::ratio_floor) is passed. Zeros compress
    /// 1,000 times with gzip and 10,000 times and more with zstd.
    pub ratio: u64,
    /// Uncompressed bytes up to which no ratio is looked at: sparse files make small layers of long zeros.
    pub ratio_floor: u64,
    /// Entries of the tar. Each takes some 250 bytes of memory while the layer is unpacked.
    pub entries: u64,
    /// Folders above one another, the entry itself counted. No path of 4,096 bytes has more than the default.
    pub depth: u64,
    /// Bytes of one extended header or long name. The kernel's own limits for a path and an attribute lie below.
    pub header: u64,
}

impl UnpackLimits {
    /// Refuses that many bytes of a tar, of which so many were read while they were compressed.
    pub(super) fn check_bytes(&self, unpacked: u64, packed: u64) -> Result<(), LayerError> {
        if unpacked > self.bytes {
            return Err(LayerError::LimitExceeded { what: "uncompressed bytes", limit: self.bytes });
        }
        if unpacked > self.ratio_floor && unpacked / self.ratio.max(1) > packed {
            return Err(LayerError::LimitExceeded {
                what: "uncompressed bytes per compressed byte",
                limit: self.ratio,
            });
        }
        Ok(())
    }

    /// Refuses a path of that many names where it is too deep.
    pub(super) fn check_depth(&self, names: usize) -> Result<(), LayerError> {
        match names as u64 > self.depth {
            true => Err(LayerError::LimitExceeded { what: "folders above one another", limit: self.depth }),
            false => Ok(()),
        }
    }
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes: 256 << 30, ratio: 400, ratio_floor: 8 << 30, entries: 2_000_000, depth: 2048, header: 1 << 20 }
    }
}
