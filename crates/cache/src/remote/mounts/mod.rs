//! Cache mounts that travel: what steps keep between builds, in the caches that machines share.
//!
//! A mount is a document under a key, as a record is: an index that lists its files, and packs that hold their bytes. Files are
//! known by what is in them: a pack is sent once, and what did not change stays where it was. A mount is fetched when a step
//! asks for it that this machine does not have; of two who write one, the last one counts.
//!
//! Reading order: [`mount_key`], `Snapshot` (what a mount holds), `pack` (out), `restore` (in), `carrier` (the document).

mod carrier;
mod pack;
mod restore;
mod snapshot;

pub(super) use carrier::Carrier;

use crate::CacheKey;
use forge_store::CacheMountKey;

/// What a mount is found by elsewhere. `scope` tells apart those of different projects in one place.
pub(super) fn mount_key(scope: &str, mount: &CacheMountKey) -> CacheKey {
    let mut hasher = blake3::Hasher::new_derive_key("forge cache mount v1");
    for text in [scope.as_bytes(), mount.id.as_bytes()] {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
    }
    if let Some(content) = &mount.first_content {
        hasher.update(content.as_bytes());
    }
    CacheKey::from_bytes(*hasher.finalize().as_bytes())
}
