//! Writes tars header by header, so that they can be wrong in any place. Shares nothing with the code under test.
#![allow(dead_code, reason = "each test file uses a part of it")]

/// An archive in the making.
#[derive(Clone, Default)]
pub struct RawTar(pub Vec<u8>);

/// A header with its fields as bytes.
#[derive(Clone)]
pub struct RawHeader(pub [u8; 512]);

impl RawHeader {
    pub fn new(name: impl AsRef<[u8]>, typeflag: u8) -> Self {
        let mut header = Self([0; 512]);
        let name = name.as_ref();
        header.put(0, name);
        let mode: &[u8] = if typeflag == b'5' { b"0000755\0" } else { b"0000644\0" };
        header.put(100, mode);
        header.put(108, b"0000000\0");
        header.put(116, b"0000000\0");
        header.put(124, b"00000000000\0");
        header.put(136, b"00000000001\0");
        header.0[156] = typeflag;
        header.put(257, b"ustar\x0000");
        header
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    pub fn mode(self, mode: u32) -> Self {
        self.field(100, format!("{mode:07o}\0").as_bytes())
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.field(108, format!("{uid:07o}\0").as_bytes()).field(116, format!("{gid:07o}\0").as_bytes())
    }

    pub fn size(self, size: u64) -> Self {
        self.field(124, format!("{size:011o}\0").as_bytes())
    }

    pub fn mtime(self, mtime: u64) -> Self {
        self.field(136, format!("{mtime:011o}\0").as_bytes())
    }

    pub fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.field(157, target.as_ref())
    }

    pub fn device(self, major: u32, minor: u32) -> Self {
        self.field(329, format!("{major:07o}\0").as_bytes()).field(337, format!("{minor:07o}\0").as_bytes())
    }

    pub fn gnu(self) -> Self {
        self.field(257, b"ustar  \0")
    }

    /// With the checksum that the other fields have.
    pub fn sealed(mut self) -> [u8; 512] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl RawTar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn header(self, header: RawHeader) -> Self {
        self.bytes(&header.sealed())
    }

    /// Data with its padding.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, header: RawHeader, data: &[u8]) -> Self {
        self.header(header.size(data.len() as u64)).data(data)
    }

    pub fn file(self, name: impl AsRef<[u8]>, data: &[u8]) -> Self {
        self.entry(RawHeader::new(name, b'0'), data)
    }

    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.header(RawHeader::new(name, b'5'))
    }

    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.header(RawHeader::new(name, b'2').link(target))
    }

    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.header(RawHeader::new(name, b'1').link(target))
    }

    /// An extended header with these records, well formed.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            data.extend_from_slice(&record(key, value));
        }
        self.pax_bytes(&data)
    }

    pub fn pax_bytes(self, data: &[u8]) -> Self {
        self.entry(RawHeader::new("pax", b'x'), data)
    }

    pub fn end(self) -> Vec<u8> {
        self.bytes(&[0; 1024]).0
    }
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
