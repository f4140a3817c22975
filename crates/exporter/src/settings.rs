use crate::AttestationForm;
use forge_image::{Platform, Reference};
use forge_store::{Compression, TarOptions};
use std::time::SystemTime;

/// How an image is to be assembled and written. [`ExportSettings::new`] has BuildKit's defaults.
#[derive(Clone, Debug)]
pub struct ExportSettings {
    /// The names of the result; empty for an image without one.
    pub names: Vec<Reference>,
    /// How layers are compressed; `None` is gzip for layers made here, while foreign blobs stay as they are.
    pub compression: Option<Compression>,
    /// Whether foreign blobs are converted to `compression` too.
    pub force_compression: bool,
    /// OCI media types, or docker's schema 2.
    pub oci_mediatypes: bool,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970: `created` is set to it, times in the history later than it too.
    pub source_date_epoch: Option<i64>,
    /// Whether file times later than the epoch are set to it in layers made here.
    pub rewrite_timestamp: bool,
    /// Whether [`push`](crate::push) pushes by digest only and moves no tag.
    pub push_by_digest: bool,
    /// The compression in which layers leave at once, if the image does: their digests are then computed while they are
    /// compressed, in one pass.
    pub leaving: Option<Compression>,
    /// Names without a tag under which the store pins the result's digest.
    pub digest_names: Vec<Reference>,
    /// Annotations to be written.
    pub annotations: Vec<Annotation>,
    /// What becomes of compressed layers that there are already, where no compression is asked for.
    pub existing_blobs: ExistingBlobs,
    /// What becomes of layers that their makers do not want to be handed on.
    pub nondistributable: Nondistributable,
    /// The form of manifests with statements.
    pub attestation_form: AttestationForm,
    /// What time it is: the caller's clock, so that results do not depend on ours.
    pub now: SystemTime,
}

/// What becomes of layers that their makers do not want to be handed on (docker's foreign layers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nondistributable {
    /// They are layers like others.
    #[default]
    Embedded,
    /// They stay what they are, with the addresses that they came with, and no registry gets them.
    Referred,
}

/// What becomes of blobs that layers have already, where no compression is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExistingBlobs {
    /// Layers of base images leave as they came, if they are compressed. Everything else leaves as gzip, whatever it left as
    /// before: so the same build gives the same image.
    #[default]
    OfBases,
    /// Whatever was made or came of a layer before leaves again, as with BuildKit.
    Kept,
}

/// One annotation of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Which document it is written to.
    pub scope: AnnotationScope,
    /// Only for the image of this platform; `None` for all. Without meaning for the scope `Index`.
    pub platform: Option<Platform>,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// The place of an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnotationScope {
    /// In the image manifest.
    Manifest,
    /// On the descriptor that points at the manifest.
    ManifestDescriptor,
    /// In the index.
    Index,
    /// On the descriptor that points at the index, in an OCI layout.
    IndexDescriptor,
}

impl ExportSettings {
    /// BuildKit's defaults: OCI media types, gzip, no annotations.
    pub fn new(now: SystemTime) -> Self {
        Self {
            names: Vec::new(),
            compression: None,
            force_compression: false,
            oci_mediatypes: true,
            source_date_epoch: None,
            rewrite_timestamp: false,
            push_by_digest: false,
            leaving: None,
            digest_names: Vec::new(),
            annotations: Vec::new(),
            existing_blobs: ExistingBlobs::default(),
            nondistributable: Nondistributable::default(),
            attestation_form: AttestationForm::default(),
            now,
        }
    }

    /// The tar dialect of layers made here.
    pub(crate) fn tar_options(&self) -> TarOptions {
        TarOptions { clamp_mtime: self.source_date_epoch.filter(|_| self.rewrite_timestamp) }
    }
}
