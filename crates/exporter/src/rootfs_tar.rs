//! The plain tar of a file tree.

use crate::tar_stream::{TarEntry, TarStream};
use crate::tree::{self, BuiltTree, PlatformFolders, TreeVisitor, walk};
use crate::work::blocking;
use crate::{ExportError, Exported, StatementFile};
use forge_registry::TransferContext;
use forge_store::{MergedTree, StoreError, TreeEntry, TreeKind};
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::EntryType;

/// Writes merged file trees as a plain tar. With an epoch every file has
/// that time, as with BuildKit.
///
/// # Errors
/// A layer is gone, or the stream fails; it may then be half written.
pub async fn to_tar(
    context: &TransferContext,
    trees: &[BuiltTree],
    source_date_epoch: Option<i64>,
    folders: PlatformFolders,
    stream: Box<dyn Write + Send>,
) -> Result<Exported, ExportError> {
    let (context, trees) = (context.clone(), trees.to_vec());
    blocking(move || {
        let merged = tree::open_all(&context, &trees, folders)?;
        let mut tar = TarStream::new(BufWriter::with_capacity(1 << 20, stream));
        let mut remarks = Vec::new();
        let said = tree::statements(&trees, &merged, folders)?;
        for ((tree, folder), said) in merged.iter().zip(tree::folders(&trees, folders)?).zip(said) {
            if let Some(folder) = &folder {
                tar.plain_folder(folder).map_err(ExportError::WriteStream)?;
            }
            let prefix = folder.map(PathBuf::from).unwrap_or_default();
            let links = HashMap::new();
            let mut writer = TreeTar { tar: &mut tar, prefix, epoch: source_date_epoch, links, remarks: &mut remarks };
            walk(tree, &mut writer)?;
            said.iter().try_for_each(|file| writer.statement(file))?;
        }
        tar.finish().map_err(ExportError::WriteStream)?;
        Ok(Exported { descriptor: None, images: Vec::new(), names: Vec::new(), remarks })
    })
    .await
}

struct TreeTar<'a, W> {
    tar: &'a mut TarStream<W>,
    prefix: PathBuf,
    epoch: Option<i64>,
    /// The first path of each link group.
    links: HashMap<(u64, u64), PathBuf>,
    remarks: &'a mut Vec<String>,
}

impl<W: Write> TreeVisitor for TreeTar<'_, W> {
    fn enter(&mut self, entry: &TreeEntry, tree: &MergedTree) -> Result<(), ExportError> {
        let path = self.prefix.join(entry.path.strip_prefix("/").unwrap_or(&entry.path));
        if let Some(group) = tree::link_group(entry) {
            match self.links.get(&group).cloned() {
                Some(first) => return self.write(EntryType::Link, &path, first.as_os_str().as_bytes(), entry),
                None => drop(self.links.insert(group, path.clone())),
            }
        }
        match &entry.kind {
            TreeKind::File { size } => self.write_file(&path, *size, entry, tree),
            TreeKind::Directory => self.write(EntryType::Directory, &path, b"", entry),
            TreeKind::Symlink { target } => self.write(EntryType::Symlink, &path, target.as_bytes(), entry),
            TreeKind::CharDevice { .. } => self.write(EntryType::Char, &path, b"", entry),
            TreeKind::BlockDevice { .. } => self.write(EntryType::Block, &path, b"", entry),
            TreeKind::Fifo => self.write(EntryType::Fifo, &path, b"", entry),
            TreeKind::Socket => {
                // tar has no sockets; GNU tar and docker leave them out as well.
                self.remarks.push(format!("{} is a socket and was left out", entry.path.display()));
                Ok(())
            }
        }
    }

    fn leave(&mut self, _: &TreeEntry) -> Result<(), ExportError> {
        Ok(())
    }
}

impl<W: Write> TreeTar<'_, W> {
    fn write(&mut self, kind: EntryType, path: &Path, link: &[u8], entry: &TreeEntry) -> Result<(), ExportError> {
        let path = in_archive(path, kind);
        let header = self.header(&path, link, entry);
        self.tar.append(kind, &header, None).map_err(ExportError::WriteStream)
    }

    fn write_file(&mut self, path: &Path, size: u64, entry: &TreeEntry, tree: &MergedTree) -> Result<(), ExportError> {
        let opened: Result<_, StoreError> = tree.open(&entry.path);
        let mut file = opened.map_err(ExportError::store("read the image's files"))?;
        let path = in_archive(path, EntryType::Regular);
        let header = TarEntry { size, ..self.header(&path, b"", entry) };
        self.tar.append(EntryType::Regular, &header, Some(&mut file)).map_err(ExportError::WriteStream)
    }

    fn statement(&mut self, file: &StatementFile) -> Result<(), ExportError> {
        let path = self.prefix.join(&file.name);
        let (path, size) = (path.as_os_str().as_bytes(), file.bytes.len() as u64);
        let mtime = (self.epoch.unwrap_or_default(), 0);
        let header = TarEntry { path, mode: 0o600, size, mtime, ..TarEntry::default() };
        let mut bytes = file.bytes.as_slice();
        self.tar.append(EntryType::Regular, &header, Some(&mut bytes)).map_err(ExportError::WriteStream)
    }

    fn header<'e>(&self, path: &'e [u8], link: &'e [u8], entry: &'e TreeEntry) -> TarEntry<'e> {
        let device = match entry.kind {
            TreeKind::CharDevice { major, minor } | TreeKind::BlockDevice { major, minor } => (major, minor),
            _ => (0, 0),
        };
        TarEntry {
            path,
            link,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: self.epoch.map_or(entry.mtime, |epoch| (epoch, 0)),
            device,
            size: 0,
            xattrs: entry.xattrs.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())).collect(),
        }
    }
}

fn in_archive(path: &Path, kind: EntryType) -> Vec<u8> {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    if kind == EntryType::Directory {
        bytes.push(b'/');
    }
    bytes
}
