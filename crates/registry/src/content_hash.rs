use forge_image::Digest;
use sha2::Digest as _;

/// A hash of the algorithm that a digest names.
pub(crate) enum ContentHash {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl ContentHash {
    pub(crate) fn like(digest: &Digest) -> Self {
        match digest.algorithm() {
            "sha512" => Self::Sha512(sha2::Sha512::new()),
            _ => Self::Sha256(sha2::Sha256::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
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
