use crate::package::{Bundle, Package};
use forge_image::{Descriptor, ImageId, Platform, Reference};
use serde_json::{Map, Value};

/// What an exporter wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// The manifest or index that stands for the whole result; `None` where none was written (store, folder, tar).
    pub descriptor: Option<Descriptor>,
    /// One for each platform, in the order asked for. Empty for folder and plain tar.
    pub images: Vec<ExportedImage>,
    /// The names that were given to it.
    pub names: Vec<Reference>,
    /// What could not be written as it was, one line each: devices without permission, for example.
    pub remarks: Vec<String>,
}

/// One image of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportedImage {
    /// What it runs on.
    pub platform: Platform,
    /// The image id, the digest of its config.
    pub id: ImageId,
    /// The manifest, where one was written.
    pub manifest: Option<Descriptor>,
}

impl Exported {
    pub(crate) fn of(bundle: &Bundle, names: &[Reference]) -> Self {
        let root = &bundle.root;
        Self {
            descriptor: Some(root.clone()),
            images: bundle.packages.iter().map(Package::exported).collect(),
            names: names.to_vec(),
            remarks: Vec::new(),
        }
    }

    /// The keys that `--metadata-file` and BuildKit's exporter response have (`containerimage.digest`,
    /// `containerimage.config.digest`, `containerimage.descriptor`, `image.name`). The descriptor is an object, as
    /// in the file; over the wire it is base64 of the same JSON. Without a manifest the digest is the image id, as
    /// with docker's own image store.
    pub fn metadata(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        if let [image] = self.images.as_slice() {
            keys.insert("containerimage.config.digest".into(), image.id.to_string().into());
        }
        if let Some(descriptor) = &self.descriptor {
            let value = serde_json::to_value(descriptor).expect("a descriptor holds only JSON values");
            keys.insert("containerimage.descriptor".into(), value);
        }
        if let Some(digest) = self.digest() {
            keys.insert("containerimage.digest".into(), digest.into());
        }
        if !self.names.is_empty() {
            let names: Vec<String> = self.names.iter().map(Reference::to_string).collect();
            keys.insert("image.name".into(), names.join(",").into());
        }
        keys
    }

    /// What stands in `containerimage.digest`: the manifest or index, else the image id of a single image.
    pub fn digest(&self) -> Option<String> {
        match (&self.descriptor, self.images.as_slice()) {
            (Some(descriptor), _) => Some(descriptor.digest.to_string()),
            (None, [image]) => Some(image.id.to_string()),
            (None, _) => None,
        }
    }
}
