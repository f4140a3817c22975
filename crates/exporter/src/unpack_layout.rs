//! An OCI layout that somebody else made, from an archive into a folder.

use crate::archive::{Reader, blob_digest, clean, invalid};
use crate::layout::{OCI_LAYOUT, add_to_index, blob_path, replace_file, write_failed};
use crate::{ExportError, LoadLimits};
use forge_image::{Digest, Hasher, Index};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use tar::EntryType;

/// An index names a few images.
const MOST_INDEX: u64 = 4 << 20;

/// Writes the layout of an archive into a folder, as [`crate::to_oci`] writes one: images that are there stay. The index comes last,
/// and nothing that was not verified is in a blob's place. Blocks.
///
/// # Errors
/// The archive is no layout, or the folder cannot be written; its index is what it was then.
pub fn unpack_layout(stream: impl Read, folder: &Path) -> Result<(), ExportError> {
    let mut reader = Reader::new(stream, LoadLimits::default());
    let (mut index, mut blobs) = (None, BTreeSet::new());
    while let Some(entry) = reader.next()? {
        let name = clean(&entry.name)?;
        match (entry.kind, name.as_str()) {
            (EntryType::Directory, _) => {}
            (EntryType::Regular | EntryType::Continuous, "index.json") if entry.size <= MOST_INDEX => {
                let mut bytes = Vec::new();
                reader.data(entry.size, &mut bytes)?;
                index = Some(bytes);
            }
            // Said anew.
            (EntryType::Regular | EntryType::Continuous, "oci-layout") => reader.data(entry.size, &mut io::sink())?,
            (EntryType::Regular | EntryType::Continuous, other) => {
                let digest = blob_digest(other).ok_or_else(|| invalid(format!("{other:?} is no file of a layout")))?;
                keep_blob(&mut reader, entry.size, &digest, folder)?;
                blobs.insert(digest);
            }
            (kind, other) => {
                return Err(invalid(format!("{other:?} is neither file nor folder, but of type {kind:?}")));
            }
        }
    }
    reader.finish()?;
    let index = index.ok_or_else(|| invalid("it has no index.json"))?;
    let index = Index::from_json(&index, None)
        .map_err(|source| ExportError::Document { what: "index.json of the archive".to_owned(), source })?;
    if let Some(missing) = index.manifests.iter().find(|image| !blobs.contains(&image.digest)) {
        return Err(invalid(format!("{} is not in it", missing.digest)));
    }
    let path = folder.join("oci-layout");
    replace_file(&path, |file| file.write_all(OCI_LAYOUT).map_err(write_failed(&path)))?;
    add_to_index(folder, index.manifests)
}

fn keep_blob<R: Read>(reader: &mut Reader<R>, size: u64, digest: &Digest, folder: &Path) -> Result<(), ExportError> {
    let path = folder.join(blob_path(digest));
    replace_file(&path, |file| {
        let mut hashed = Hashed { file, hasher: Hasher::new(), failed: None };
        let read = reader.data(size, &mut hashed);
        match hashed.failed.take() {
            Some(error) => Err(write_failed(&path)(error)),
            None if hashed.hasher.finish() == *digest => read,
            None => read.and(Err(invalid(format!("a file of it is not {digest}")))),
        }
    })
}

/// A file that is hashed while it is written.
struct Hashed<'a> {
    file: &'a mut File,
    hasher: Hasher,
    /// What it could not be written for: to the reader this is no failure of its own.
    failed: Option<io::Error>,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            io::Error::from(kind)
        })?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of files, links where the text starts with an arrow.
    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            match text.strip_prefix("->") {
                Some(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    header.set_link_name(target).unwrap();
                }
                None => header.set_size(text.len() as u64),
            }
            // Past what the library would refuse to write.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            let data = if text.starts_with("->") { "" } else { text };
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn index(text: &str, name: &str) -> String {
        let digest = Digest::sha256(text.as_bytes());
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}",
            "size":{},"annotations":{{"io.containerd.image.name":"{name}"}}}}]}}"#,
            text.len()
        )
    }

    fn blob(text: &str) -> String {
        blob_path(&Digest::sha256(text.as_bytes()))
    }

    fn listed(folder: &Path) -> usize {
        let bytes = std::fs::read(folder.join("index.json")).unwrap();
        Index::from_json(&bytes, None).unwrap().manifests.len()
    }

    #[test]
    fn a_layout_comes_into_its_folder_beside_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/layout");
        for (text, name, images) in [("one", "a:1", 1), ("two", "b:1", 2), ("three", "a:1", 2)] {
            let (index, blob) = (index(text, name), blob(text));
            // In any order.
            let files = [("oci-layout", "{}"), ("index.json", index.as_str()), (&blob, text)];
            unpack_layout(&*archive(&files), &folder).unwrap();
            assert_eq!(std::fs::read_to_string(folder.join(&blob)).unwrap(), text);
            assert_eq!(listed(&folder), images, "{name}");
        }
        assert_eq!(std::fs::read(folder.join("oci-layout")).unwrap(), OCI_LAYOUT);
    }

    // Seen to fail with blobs that are not compared.
    #[test]
    fn a33_nothing_but_blobs_that_are_what_they_say_comes_into_the_folder() {
        let (good, path) = (index("one", "a:1"), blob("one"));
        let other = index("other", "a:1");
        for (files, words) in [
            (vec![("../out", "x")], "leads out of it"),
            (vec![("blobs/sha256/../../../out", "x")], "leads out of it"),
            (vec![("/etc/out", "x")], "leads out of it"),
            (vec![("out", "x")], "\"out\" is no file of a layout"),
            (vec![("blobs/sha256/out", "x")], "is no file of a layout"),
            (vec![(&*path, "->/etc/passwd")], "neither file nor folder"),
            (vec![(&*path, "two")], "is not sha256:"),
            (vec![(&*path, "one")], "it has no index.json"),
            (vec![(&*path, "one"), ("index.json", &other)], "is not in it"),
            (vec![("index.json", "{")], "index.json of the archive"),
        ] {
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("layout");
            unpack_layout(&*archive(&[("index.json", &good), (&path, "one")]), &folder).unwrap();
            let before = std::fs::read(folder.join("index.json")).unwrap();
            let refused = unpack_layout(&*archive(&files), &folder).unwrap_err().to_string();
            assert!(refused.contains(words), "{files:?}: {refused}");
            assert_eq!(std::fs::read(folder.join("index.json")).unwrap(), before);
            assert_eq!(std::fs::read(folder.join(&path)).unwrap(), b"one");
            assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "{files:?}");
            assert_eq!(std::fs::read_dir(folder.join("blobs/sha256")).unwrap().count(), 1, "{files:?}");
        }
        // Cut off in the middle.
        let folder = tempfile::tempdir().unwrap();
        let whole = archive(&[("index.json", &good), (&path, "one")]);
        assert!(unpack_layout(&whole[..whole.len() - 1500], folder.path()).is_err());
        assert!(!folder.path().join("index.json").exists());
    }
}
