//! What tables of contents say of layers that are not here: enough to know what lies where, without a byte of a file.
//!
//! A table is believed where the manifest names it by its digest: it is then as much the publisher's word as the layer's own
//! bytes. What is unusual in it is not judged: the layer is fetched instead.

use super::Layers;
use super::apply::default_root;
use super::decompress::Tar;
use super::entry::{EntryKind, Metadata, join_path, split_path};
use super::entry_name::{self, EntryName};
use super::index::LayerIndex;
use super::listed::EntryList;
use super::placement::{Missing, Place, Placed, Placement};
use super::tar_reader::TarReader;
use super::tree::MergedTree;
use super::xattr;
use crate::{LayerId, StoreError};
use forge_image::{Descriptor, Digest};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::time::UNIX_EPOCH;

/// The footer of eStargz, see [`estargz`](super::estargz).
const FOOTER: u64 = 51;

/// The largest table that is read, compressed and not: that of a million files has some 300 MB.
const LARGEST: u64 = 64 << 20;
const LARGEST_UNCOMPRESSED: u64 = 512 << 20;

/// A layer's table of contents, as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOfContents {
    /// Of the JSON for eStargz, of what it is compressed to for zstd:chunked.
    digest: Digest,
    arrangement: Arrangement,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Arrangement {
    Estargz,
    ZstdChunked(Range<u64>),
}

impl TableOfContents {
    /// The table of a layer's blob, if its descriptor names one.
    pub fn of(blob: &Descriptor) -> Option<Self> {
        let text = |key: &str| blob.annotations.get(key)?.as_str();
        if let Some(digest) = text("containerd.io/snapshot/stargz/toc.digest") {
            return Some(Self { digest: digest.parse().ok()?, arrangement: Arrangement::Estargz });
        }
        let digest = text("io.github.containers.zstd-chunked.manifest-checksum")?.parse().ok()?;
        let position = text("io.github.containers.zstd-chunked.manifest-position")?;
        let mut numbers = position.split(':').map(|number| number.parse::<u64>().ok());
        let (start, length) = (numbers.next()??, numbers.next()??);
        let range = start..start.checked_add(length)?;
        (range.end <= blob.size && length <= LARGEST)
            .then_some(Self { digest, arrangement: Arrangement::ZstdChunked(range) })
    }

    /// What its bytes hash to: they may be among the blobs already.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What of the blob says where the table lies; `None` where that is known.
    pub fn footer(&self, blob: &Descriptor) -> Option<Range<u64>> {
        match self.arrangement {
            Arrangement::Estargz => Some(blob.size.saturating_sub(FOOTER)..blob.size),
            Arrangement::ZstdChunked(_) => None,
        }
    }

    /// Where the table lies, by the footer, if that was asked for; `None` where it is no place.
    pub fn range(&self, blob: &Descriptor, footer: &[u8]) -> Option<Range<u64>> {
        match &self.arrangement {
            Arrangement::ZstdChunked(range) => Some(range.clone()),
            Arrangement::Estargz => {
                let digits = footer.get(16..32).filter(|_| footer.get(32..38) == Some(b"STARGZ"))?;
                let start = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
                let end = blob.size.checked_sub(FOOTER)?;
                (start < end && end - start <= LARGEST).then_some(start..end)
            }
        }
    }

    /// What its digest is of, from what lies there; `None` where it is something else.
    pub fn verified(&self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let content = match self.arrangement {
            Arrangement::ZstdChunked(_) => bytes,
            Arrangement::Estargz => only_file(bytes)?,
        };
        (Digest::sha256(&content) == self.digest).then_some(content)
    }

    fn json(&self, content: Vec<u8>) -> Option<Vec<u8>> {
        let Arrangement::ZstdChunked(_) = self.arrangement else { return Some(content) };
        let mut json = Vec::new();
        let decoder = zstd::Decoder::new(&content[..]).ok()?;
        decoder.take(LARGEST_UNCOMPRESSED + 1).read_to_end(&mut json).ok()?;
        (json.len() as u64 <= LARGEST_UNCOMPRESSED).then_some(json)
    }
}

/// The first file of a compressed tar.
fn only_file(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let tar = Tar::open(Cursor::new(bytes)).ok()?;
    let mut reader = TarReader::new(tar.take(LARGEST_UNCOMPRESSED), Default::default());
    reader.next().ok()??;
    let mut content = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.data(&mut buffer).ok()? {
            0 => return Some(content),
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

impl Layers {
    /// Takes note of what the table of contents of an absent layer says, for [`Layers::known_tree`] in this process; `content` is
    /// what its digest is of. `false` where the table, or what it says, is unusual: only the layer itself tells then.
    ///
    /// # Errors
    /// What the layers below are is not known either, or the database failed.
    pub fn tell(
        &self,
        layer: &LayerId,
        parents: &[LayerId],
        table: &TableOfContents,
        content: Vec<u8>,
    ) -> Result<bool, StoreError> {
        if self.is_told(layer) {
            return Ok(true);
        }
        let rows = table.json(content).and_then(|json| serde_json::from_slice::<Rows>(&json).ok());
        let Some(Rows { version: 1, mut entries }) = rows else { return Ok(false) };
        if entries.len() as u64 > self.limits.entries {
            return Ok(false);
        }
        if table.arrangement == Arrangement::Estargz {
            // The table is a file of the layer, and does not list itself.
            entries.push(Row { name: "stargz.index.json".to_owned(), kind: "reg".to_owned(), ..Row::default() });
        }
        let index = match place(&entries, &self.known_tree(parents)?) {
            Ok(index) => index,
            Err(Unplaced::Unusual) => return Ok(false),
            Err(Unplaced::Failed(StoreError::Layer(_))) => return Ok(false),
            Err(Unplaced::Failed(error)) => return Err(error),
        };
        self.opened.remembered().tell(layer, EntryList::new(layer, index));
        Ok(true)
    }

    /// Whether the table of contents of an absent layer was taken note of.
    pub fn is_told(&self, layer: &LayerId) -> bool {
        self.opened.remembered().told(layer).is_some()
    }
}

#[derive(Deserialize)]
struct Rows {
    version: u32,
    entries: Vec<Row>,
}

/// What is read of a row; see [`contents`](super::contents) for all of it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    #[serde(rename = "modtime")]
    modified: String,
    link_name: String,
    mode: u32,
    uid: u32,
    gid: u32,
    dev_major: u32,
    dev_minor: u32,
    xattrs: BTreeMap<String, String>,
}

/// Why a table comes to no list.
enum Unplaced {
    /// Something that writers of such layers do not do.
    Unusual,
    Failed(StoreError),
}

impl<E: Into<StoreError>> From<E> for Unplaced {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Puts the rows where an unpacker would, see [`unpack`](super::unpack).
fn place(rows: &[Row], lower: &MergedTree) -> Result<LayerIndex, Unplaced> {
    let mut placement = Placement::new(lower)?;
    for row in rows.iter().filter(|row| row.kind != "chunk") {
        match EntryName::parse(row.name.as_bytes())? {
            EntryName::Aufs => {}
            EntryName::Root if row.kind == "dir" => {
                let metadata = row.metadata(true)?;
                let kind = EntryKind::Directory { opaque: false, implied: false };
                let root = placement.get_mut(b"").expect("there always is a root");
                (root.kind, root.metadata) = (kind, metadata);
            }
            // What it hides of the root would have to be listed.
            EntryName::Root => return Err(Unplaced::Unusual),
            EntryName::Opaque { folder } => {
                let folder = way(&mut placement, &folder)?;
                match placement.get_mut(&folder).map(|placed| &mut placed.kind) {
                    Some(EntryKind::Directory { opaque, .. }) if !folder.is_empty() => *opaque = true,
                    _ => return Err(Unplaced::Unusual),
                }
            }
            EntryName::Whiteout { parent, name } => match placement.folder(&parent, Missing::EndsTheWay)? {
                Some(place) if place.is_provisional() => return Err(Unplaced::Unusual),
                Some(place) => placement.hide(&join_path(&place.path, name))?,
                None => {}
            },
            EntryName::Node { parent, name } => {
                let path = join_path(&way(&mut placement, &parent)?, name);
                node(&mut placement, &path, row)?;
            }
        }
    }
    settle(&mut placement)?;
    Ok(placement.into_index()?)
}

/// The folder of an entry, with those on the way to it that the layer implies.
fn way(placement: &mut Placement<'_>, components: &[&[u8]]) -> Result<Vec<u8>, Unplaced> {
    let place = placement.folder(components, Missing::BecomesFolder)?.expect("what is missing becomes a folder");
    if place.is_provisional() {
        return Err(Unplaced::Unusual);
    }
    let Place { path, missing, .. } = place;
    for (path, metadata) in missing {
        placement.insert(&path, EntryKind::Directory { opaque: false, implied: true }, metadata);
    }
    Ok(path)
}

fn node(placement: &mut Placement<'_>, path: &[u8], row: &Row) -> Result<(), Unplaced> {
    if row.kind == "hardlink" {
        let target = entry_name::clean(row.link_name.as_bytes())?.join(&b'/');
        return match placement.get(&target).cloned() {
            Some(placed) if placement.get(path).is_none() && !is_folder(&placed) => {
                placement.link(path, placed);
                Ok(())
            }
            _ => Err(Unplaced::Unusual),
        };
    }
    let kind = row.entry_kind()?;
    let metadata = row.metadata(matches!(kind, EntryKind::File { .. } | EntryKind::Directory { .. }))?;
    match placement.get_mut(path) {
        None => placement.insert(path, kind, metadata),
        Some(placed) if is_folder(placed) && matches!(kind, EntryKind::Directory { .. }) => {
            if let EntryKind::Directory { implied, .. } = &mut placed.kind {
                *implied = false;
            }
            placed.metadata = metadata;
        }
        // Of a name that stands twice the last one counts, with what that does to what is in it.
        Some(_) => return Err(Unplaced::Unusual),
    }
    Ok(())
}

fn is_folder(placed: &Placed) -> bool {
    matches!(placed.kind, EntryKind::Directory { .. })
}

/// As an unpacker does at the end.
fn settle(placement: &mut Placement<'_>) -> Result<(), Unplaced> {
    for path in placement.hidden() {
        if let Some(placed) = placement.get_mut(&path) {
            if let EntryKind::Directory { opaque, implied } = &mut placed.kind {
                *opaque = true;
                if std::mem::take(implied) {
                    placed.metadata = default_root();
                }
            }
        } else if placement.beneath(&path)?.is_some() {
            let (parent, _) = split_path(&path).ok_or(Unplaced::Unusual)?;
            let components: Vec<&[u8]> = parent.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
            way(placement, &components)?;
            placement.insert(&path, EntryKind::Whiteout, Metadata::default());
        }
    }
    Ok(placement.settle_folders()?)
}

impl Row {
    fn entry_kind(&self) -> Result<EntryKind, Unplaced> {
        let (major, minor) = (self.dev_major, self.dev_minor);
        Ok(match self.kind.as_str() {
            // Nobody may ask what a file hashes to that is not here.
            "reg" => EntryKind::File { size: self.size, blake3: [0; 32] },
            "dir" => EntryKind::Directory { opaque: false, implied: false },
            "symlink" => EntryKind::Symlink { target: self.link_name.clone().into() },
            "char" if (major, minor) != (0, 0) => EntryKind::CharDevice { major, minor },
            "block" => EntryKind::BlockDevice { major, minor },
            "fifo" => EntryKind::Fifo,
            _ => return Err(Unplaced::Unusual),
        })
    }

    fn metadata(&self, carries_user: bool) -> Result<Metadata, Unplaced> {
        let seconds = match self.modified.as_str() {
            "" if self.name == "stargz.index.json" => 0,
            text => {
                let time = humantime::parse_rfc3339_weak(text).map_err(|_| Unplaced::Unusual)?;
                let since = time.duration_since(UNIX_EPOCH).map_err(|_| Unplaced::Unusual)?;
                since.as_secs().cast_signed()
            }
        };
        let mode = if self.kind == "symlink" { 0o777 } else { self.mode & 0o7777 };
        let mut xattrs = BTreeMap::new();
        for (name, value) in &self.xattrs {
            let value = decoded(value).ok_or(Unplaced::Unusual)?;
            let kept = xattr::keeps_xattr(name.as_bytes()) && (carries_user || !name.starts_with("user."));
            if let Some(value) = xattr::portable_value(name.as_bytes(), value).filter(|_| kept) {
                xattrs.insert(OsString::from_vec(name.clone().into_bytes()), value);
            }
        }
        Ok(Metadata { mode, uid: self.uid, gid: self.gid, mtime: (seconds, 0), xattrs })
    }
}

/// Base64 with padding, as Go's JSON has bytes.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=').bytes().map(digit).collect::<Option<Vec<u8>>>()?;
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        let whole = group.len().checked_sub(1).filter(|whole| *whole > 0)?;
        bytes.extend_from_slice(&bits.to_be_bytes()[1..=whole]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_bytes() {
        for (text, expect) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")] {
            assert_eq!(decoded(text).unwrap(), expect.as_bytes());
        }
        assert_eq!((decoded("//79").unwrap(), decoded("Z"), decoded("Z*==")), (vec![0xff, 0xfe, 0xfd], None, None));
    }

    fn listed(rows: &str, lower: &MergedTree) -> Option<String> {
        let rows: Vec<Row> = serde_json::from_str(rows).unwrap();
        let index = match place(&rows, lower) {
            Ok(index) => index,
            Err(Unplaced::Unusual) => return None,
            Err(Unplaced::Failed(error)) => panic!("{error}"),
        };
        let line = |entry: &crate::LayerEntry| {
            let kind = match &entry.kind {
                EntryKind::Directory { opaque, implied } => format!("dir opaque={opaque} implied={implied}"),
                EntryKind::File { size, .. } => format!("file {size} link={:?}", entry.link),
                EntryKind::Symlink { target } => format!("link {}", target.display()),
                other => format!("{other:?}"),
            };
            format!("{} {kind} {:o}\n", entry.path().display(), entry.metadata.mode)
        };
        Some(index.entries()[1..].iter().map(line).collect())
    }

    #[test]
    fn rows_are_placed_as_an_unpacker_places_entries() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tmp", "old", "gone"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::set_permissions(folder.path().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
            .unwrap();
        std::os::unix::fs::symlink("old", folder.path().join("link")).unwrap();
        let lower = MergedTree::new(vec![folder.path().to_owned()]).unwrap();
        let at = r#""modtime":"1970-01-01T00:00:05Z""#;
        let rows = format!(
            r#"[{{"name":"tmp/f","type":"reg","size":3,"mode":420,{at}}},{{"name":"tmp/f","type":"chunk"}},
            {{"name":"tmp/g","type":"hardlink","linkName":"tmp/f"}},
            {{"name":"old/","type":"dir","mode":448,{at}}},{{"name":"old/.wh..wh..opq","type":"reg",{at}}},
            {{"name":".wh.gone","type":"reg",{at}}},{{"name":"s","type":"symlink","linkName":"tmp","mode":511,{at}}}]"#
        );
        let expect = "gone Whiteout 0\nold dir opaque=true implied=false 700\ns link tmp 777\n\
                      tmp dir opaque=false implied=true 1777\ntmp/f file 3 link=None 644\ntmp/g file 3 link=Some(5) 644\n";
        assert_eq!(listed(&rows, &lower).unwrap(), expect);
        for unusual in [
            format!(r#"[{{"name":"link/f","type":"reg",{at}}}]"#),
            format!(r#"[{{"name":"f","type":"reg",{at}}},{{"name":"f","type":"reg",{at}}}]"#),
            format!(r#"[{{"name":"f","type":"door",{at}}}]"#),
            r#"[{"name":"f","type":"reg"}]"#.to_owned(),
            format!(r#"[{{"name":"f","type":"hardlink","linkName":"nothing",{at}}}]"#),
        ] {
            assert_eq!(listed(&unusual, &lower), None, "{unusual}");
        }
    }
}
