use std::fmt::Write as _;

/// Writes tar archives byte by byte, well-formed or not. Knows nothing of forge's own tar code.
#[derive(Clone, Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

/// The header of one entry; every field can be set to anything.
#[derive(Clone, Debug)]
pub struct TarEntry {
    /// The path; longer than 100 bytes it is carried by a PAX record.
    pub name: Vec<u8>,
    /// `0` file, `1` hard link, `2` symbolic link, `3` and `4` devices, `5` folder, `6` FIFO, or anything.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// Modification time in seconds.
    pub mtime: u64,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The bytes of a file.
    pub data: Vec<u8>,
    /// The size in the header, where it is to differ from `data`.
    pub size: Option<u64>,
    /// PAX records before the entry.
    pub pax: Vec<(String, Vec<u8>)>,
}

impl TarEntry {
    /// An entry of root's, mode 0644, of the epoch.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            link: Vec::new(),
            device: (0, 0),
            data: Vec::new(),
            size: None,
            pax: Vec::new(),
        }
    }

    /// Sets the permission bits.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Sets owner and group.
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    /// Sets the modification time.
    pub fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    /// Adds an extended attribute.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.pax.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        self
    }
}

impl TarBuilder {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, mode 0644.
    pub fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry { data: data.as_ref().to_vec(), ..TarEntry::new(b'0', name) })
    }

    /// Adds an executable file, mode 0755.
    pub fn executable(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry { data: data.as_ref().to_vec(), mode: 0o755, ..TarEntry::new(b'0', name) })
    }

    /// Adds a folder, mode 0755.
    pub fn directory(self, name: &str) -> Self {
        self.entry(TarEntry::new(b'5', format!("{}/", name.trim_end_matches('/'))).mode(0o755))
    }

    /// Adds a symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(TarEntry { link: target.into(), mode: 0o777, ..TarEntry::new(b'2', name) })
    }

    /// Adds a hard link to an earlier entry.
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(TarEntry { link: target.into(), ..TarEntry::new(b'1', name) })
    }

    /// Adds what removes a file of a lower layer.
    pub fn whiteout(self, name: &str) -> Self {
        let (folder, name) = name.rsplit_once('/').map_or(("", name), |(folder, name)| (folder, name));
        let slash = if folder.is_empty() { "" } else { "/" };
        self.file(&format!("{folder}{slash}.wh.{name}"), "")
    }

    /// Adds what hides everything that lower layers have in a folder.
    pub fn opaque(self, folder: &str) -> Self {
        self.file(&format!("{folder}/.wh..wh..opq"), "")
    }

    /// Adds any entry.
    pub fn entry(mut self, entry: TarEntry) -> Self {
        let mut pax = entry.pax.clone();
        for (key, value) in [("path", &entry.name), ("linkpath", &entry.link)] {
            if value.len() > 100 {
                pax.push((key.to_owned(), value.clone()));
            }
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            self = self.write(&TarEntry { data: records, ..TarEntry::new(b'x', "PaxHeaders/x") });
        }
        self.write(&entry)
    }

    /// Adds bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The archive, ended by two blocks of zeros.
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }

    /// The archive without its end.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    fn write(self, entry: &TarEntry) -> Self {
        let padding = entry.data.len().next_multiple_of(512) - entry.data.len();
        self.raw(&header(entry)).raw(&entry.data).raw(&vec![0; padding])
    }
}

/// A ustar header (POSIX.1-2024, pax, "ustar Interchange Format").
fn header(entry: &TarEntry) -> [u8; 512] {
    let mut block = [0u8; 512];
    put(&mut block, 0, 100, &entry.name);
    put(&mut block, 100, 8, octal(u64::from(entry.mode), 7).as_bytes());
    put(&mut block, 108, 8, octal(entry.uid, 7).as_bytes());
    put(&mut block, 116, 8, octal(entry.gid, 7).as_bytes());
    put(&mut block, 124, 12, octal(entry.size.unwrap_or(entry.data.len() as u64), 11).as_bytes());
    put(&mut block, 136, 12, octal(entry.mtime, 11).as_bytes());
    block[156] = entry.kind;
    put(&mut block, 157, 100, &entry.link);
    put(&mut block, 257, 8, b"ustar\x0000");
    put(&mut block, 329, 8, octal(u64::from(entry.device.0), 7).as_bytes());
    put(&mut block, 337, 8, octal(u64::from(entry.device.1), 7).as_bytes());
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    put(&mut block, 148, 8, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(block: &mut [u8; 512], at: usize, length: usize, bytes: &[u8]) {
    let length = bytes.len().min(length);
    block[at..at + length].copy_from_slice(&bytes[..length]);
}

fn octal(value: u64, digits: usize) -> String {
    format!("{value:0digits$o}")
}

/// `length key=value\n`, where the length counts its own digits.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut head = String::new();
    write!(head, "{length} {key}=").expect("writing to a string does not fail");
    [head.as_bytes(), value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_lengths_count_themselves() {
        for length in [1, 90, 91, 92, 93, 990, 5000] {
            let record = pax_record("path", &vec![b'a'; length]);
            let head: String = record.iter().take_while(|byte| **byte != b' ').map(|byte| char::from(*byte)).collect();
            assert_eq!(head.parse::<usize>().unwrap(), record.len());
        }
    }
}
