//! The headers of forge's tar dialect.
//!
//! One dialect, so that a layer's DiffId is a function of its index and bytes:
//! - ustar headers; whatever does not fit is in a PAX header before the entry: paths that are long or not ASCII
//!   (as raw bytes, which is what Go's writer does and all readers take), large ids, times outside 0..8^11, xattrs as
//!   `SCHILY.xattr.*`;
//! - times in whole seconds, cut towards the past: docker, BuildKit and containerd write them so, and a PAX header for
//!   every entry would cost 1 KiB each;
//! - no user and group names, no access and change times, zero device numbers but for devices;
//! - folders end in a slash, the root is `./`; a deletion is an empty file `.wh.<name>` of mode 0 and time 0, an
//!   opaque folder has `.wh..wh..opq` as its first entry;
//! - two zero blocks at the end, no further padding.

use super::commit::WHITEOUT_PREFIX;
use super::entry::{EntryKind, LayerEntry, Metadata, join_path, split_path};
use crate::TarOptions;
use std::os::unix::ffi::OsStrExt;
use tar::{EntryType, Header};

pub(super) const BLOCK: usize = 512;
pub(super) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// The largest value of the octal fields for ids (7 digits) and for sizes and times (11 digits).
const MAX_ID: u64 = 0o7777777;
const MAX_LONG: u64 = 0o77777777777;

const NAME: usize = 100;
const PREFIX: usize = 155;

/// Appends the headers of an entry, without the file's bytes. `first` is the path of the node's first name, if the
/// entry is a further one.
pub(super) fn put_entry(entry: &LayerEntry, first: Option<&[u8]>, options: &TarOptions, out: &mut Vec<u8>) {
    let metadata = &entry.metadata;
    if let Some(first) = first {
        return put(&Fields { link: first, ..Fields::new(EntryType::Link, &entry.path, metadata) }, options, out);
    }
    match &entry.kind {
        EntryKind::File { size, .. } => {
            put(
                &Fields { size: *size, ..Fields::with_xattrs(EntryType::Regular, &entry.path, metadata) },
                options,
                out,
            );
        }
        EntryKind::Directory { opaque, implied } => {
            put_directory(&entry.path, metadata, (*opaque, *implied), options, out);
        }
        EntryKind::Symlink { target } => {
            let fields = Fields::with_xattrs(EntryType::Symlink, &entry.path, metadata);
            put(&Fields { link: target.as_bytes(), ..fields }, options, out);
        }
        EntryKind::CharDevice { major, minor } => {
            let fields = Fields::with_xattrs(EntryType::Char, &entry.path, metadata);
            put(&Fields { device: Some((*major, *minor)), ..fields }, options, out);
        }
        EntryKind::BlockDevice { major, minor } => {
            let fields = Fields::with_xattrs(EntryType::Block, &entry.path, metadata);
            put(&Fields { device: Some((*major, *minor)), ..fields }, options, out);
        }
        EntryKind::Fifo => put(&Fields::with_xattrs(EntryType::Fifo, &entry.path, metadata), options, out),
        EntryKind::Whiteout => put_whiteout(&entry.path, out),
    }
}

fn put_directory(
    path: &[u8],
    metadata: &Metadata,
    (opaque, implied): (bool, bool),
    options: &TarOptions,
    out: &mut Vec<u8>,
) {
    if !implied {
        let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        put(&Fields::with_xattrs(EntryType::Directory, &name, metadata), options, out);
    }
    if opaque {
        put_marker(&join_path(path, OPAQUE_NAME), out);
    }
}

fn put_whiteout(path: &[u8], out: &mut Vec<u8>) {
    let (parent, name) = split_path(path).expect("the root is always a folder");
    put_marker(&join_path(parent, &[WHITEOUT_PREFIX, name].concat()), out);
}

fn put_marker(name: &[u8], out: &mut Vec<u8>) {
    put(&Fields::new(EntryType::Regular, name, &Metadata::default()), &TarOptions::default(), out);
}

/// The zero bytes that fill the last block of a file.
pub(super) fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

struct Fields<'a> {
    kind: EntryType,
    name: &'a [u8],
    link: &'a [u8],
    metadata: &'a Metadata,
    size: u64,
    device: Option<(u32, u32)>,
    /// Further names of a node do not repeat its attributes.
    xattrs: bool,
}

impl<'a> Fields<'a> {
    fn new(kind: EntryType, name: &'a [u8], metadata: &'a Metadata) -> Self {
        Self { kind, name, link: b"", metadata, size: 0, device: None, xattrs: false }
    }

    fn with_xattrs(kind: EntryType, name: &'a [u8], metadata: &'a Metadata) -> Self {
        Self { xattrs: true, ..Self::new(kind, name, metadata) }
    }
}

fn put(fields: &Fields<'_>, options: &TarOptions, out: &mut Vec<u8>) {
    let mut pax = Vec::new();
    let header = header_of(fields, options, &mut pax);
    if !pax.is_empty() {
        put_pax(&pax, out);
    }
    out.extend_from_slice(header.as_bytes());
}

/// Fills the header, and puts into `pax` what does not fit; such a field of the header is cut or zero.
fn header_of(fields: &Fields<'_>, options: &TarOptions, pax: &mut Vec<u8>) -> Header {
    let mut header = Header::new_ustar();
    let metadata = fields.metadata;
    let seconds = options.clamp_mtime.map_or(metadata.mtime.0, |clamp| metadata.mtime.0.min(clamp));
    header.set_entry_type(fields.kind);
    put_name(&mut header, fields.name, pax);
    put_link(&mut header, fields.link, pax);
    header.set_mode(metadata.mode);
    header.set_size(fitting(fields.size, MAX_LONG, b"size", pax));
    header.set_uid(fitting(u64::from(metadata.uid), MAX_ID, b"uid", pax));
    header.set_gid(fitting(u64::from(metadata.gid), MAX_ID, b"gid", pax));
    match u64::try_from(seconds) {
        Ok(seconds) => header.set_mtime(fitting(seconds, MAX_LONG, b"mtime", pax)),
        Err(_) => {
            put_record(b"mtime", seconds.to_string().as_bytes(), pax);
            header.set_mtime(0);
        }
    }
    let (major, minor) = fields.device.unwrap_or((0, 0));
    header.set_device_major(major).expect("a ustar header has device fields");
    header.set_device_minor(minor).expect("a ustar header has device fields");
    for (name, value) in metadata.xattrs.iter().filter(|_| fields.xattrs) {
        put_record(&[b"SCHILY.xattr.", name.as_bytes()].concat(), value, pax);
    }
    header.set_cksum();
    header
}

fn put_name(header: &mut Header, name: &[u8], pax: &mut Vec<u8>) {
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    match split_name(name).filter(|_| name.is_ascii()) {
        Some((prefix, rest)) => {
            ustar.prefix[..prefix.len()].copy_from_slice(prefix);
            ustar.name[..rest.len()].copy_from_slice(rest);
        }
        None => {
            put_record(b"path", name, pax);
            put_cut(&mut ustar.name, name);
        }
    }
}

fn put_link(header: &mut Header, link: &[u8], pax: &mut Vec<u8>) {
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    if link.len() > NAME || !link.is_ascii() {
        put_record(b"linkpath", link, pax);
        put_cut(&mut ustar.linkname, link);
    } else {
        ustar.linkname[..link.len()].copy_from_slice(link);
    }
}

/// Where a long name can be cut at a slash so that both fields take it.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME {
        return Some((b"", name));
    }
    let cuts = (1..name.len().min(PREFIX + 1)).rev().filter(|cut| name[*cut] == b'/');
    cuts.map(|cut| (&name[..cut], &name[cut + 1..])).find(|(_, rest)| !rest.is_empty() && rest.len() <= NAME)
}

/// For readers that know no PAX: the beginning of the name, in ASCII.
fn put_cut(field: &mut [u8; NAME], name: &[u8]) {
    for (place, byte) in field.iter_mut().zip(name.iter().filter(|byte| byte.is_ascii())) {
        *place = *byte;
    }
}

fn fitting(value: u64, max: u64, key: &[u8], pax: &mut Vec<u8>) -> u64 {
    if value <= max {
        return value;
    }
    put_record(key, value.to_string().as_bytes(), pax);
    0
}

/// `"<length> <key>=<value>\n"`, where the length counts its own digits.
fn put_record(key: &[u8], value: &[u8], pax: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    for part in [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"] {
        pax.extend_from_slice(part);
    }
}

fn put_pax(records: &[u8], out: &mut Vec<u8>) {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    let ustar = header.as_ustar_mut().expect("the header was made as ustar");
    ustar.name[..9].copy_from_slice(b"PaxHeader");
    header.set_mode(0o644);
    header.set_size(records.len() as u64);
    for set in [Header::set_uid, Header::set_gid, Header::set_mtime] {
        set(&mut header, 0);
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(records);
    out.resize(out.len() + padding(records.len() as u64), 0);
}
