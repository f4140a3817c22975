use forge_image::Digest;
use sha2::Digest as _;

/// A hash of the algorithm that a digest names.
pub enum ContentHash {
    /// `sha256:`
    Sha256(sha2::Sha256),
    /// `sha512:`
    Sha512(sha2::Sha512),
}

impl Default for ContentHash {
    /// SHA-256, the usual one.
    fn default() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }
}

impl ContentHash {
    /// Of the algorithm of a digest.
    pub fn like(digest: &Digest) -> Self {
        match digest.algorithm() {
            "sha512" => Self::Sha512(sha2::Sha512::new()),
            _ => Self::Sha256(sha2::Sha256::new()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        let text = match self {
            Self::Sha256(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Self::Sha512(hash) => format!("sha512:{}", hex(&hash.finalize())),
        };
        text.parse().expect("a hash is as long as its algorithm's digests")
    }

    /// The digest of bytes at hand, by the algorithm of another digest.
    pub(crate) fn of(bytes: &[u8], like: &Digest) -> Digest {
        let mut hash = Self::like(like);
        hash.update(bytes);
        hash.finish()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
