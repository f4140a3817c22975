//! The protocol that files cross a session by: one side lists its tree, the other asks for the files that it lacks.
//!
//! ```text
//! sender                receiver
//! STAT entry 0    →
//! STAT entry 1    →
//!                 ←     REQ 1          (its bytes are wanted)
//! STAT            →                    (the list is over)
//! DATA 1 bytes    →
//! DATA 1 nothing  →                    (the file is over)
//!                 ←     FIN
//! FIN             →
//! ```
//! Entries are numbered in the order of the list; modes are Go's `fs.FileMode`, not those of `stat(2)`.

use forge_buildkit_proto::fsutil::types::packet::PacketType;
use forge_buildkit_proto::fsutil::types::{Packet, Stat};

/// Go's bits for what a file is, and for what `chmod` sets beyond permissions.
pub mod mode {
    /// A folder.
    pub const DIRECTORY: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device.
    pub const DEVICE: u32 = 1 << 26;
    /// A pipe.
    pub const FIFO: u32 = 1 << 25;
    /// A socket.
    pub const SOCKET: u32 = 1 << 24;
    /// `S_ISUID`.
    pub const SET_UID: u32 = 1 << 23;
    /// `S_ISGID`.
    pub const SET_GID: u32 = 1 << 22;
    /// With [`DEVICE`], one of characters.
    pub const CHARACTER: u32 = 1 << 21;
    /// `S_ISVTX`.
    pub const STICKY: u32 = 1 << 20;
    /// Everything that says what a file is.
    pub const KIND: u32 = DIRECTORY | SYMLINK | DEVICE | FIFO | SOCKET | CHARACTER | 1 << 19;

    /// The bits that `chmod(2)` takes.
    pub fn permissions(mode: u32) -> u32 {
        let high = [(SET_UID, 0o4000), (SET_GID, 0o2000), (STICKY, 0o1000)];
        high.iter().filter(|(go, _)| mode & go != 0).fold(mode & 0o777, |bits, (_, unix)| bits | unix)
    }

    /// The same the other way round.
    pub fn of_permissions(mode: u32) -> u32 {
        let high = [(SET_UID, 0o4000), (SET_GID, 0o2000), (STICKY, 0o1000)];
        high.iter().filter(|(_, unix)| mode & unix != 0).fold(mode & 0o777, |bits, (go, _)| bits | go)
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// Devices, pipes and sockets.
    Special,
}

/// What a stat says that its entry is.
pub fn kind(stat: &Stat) -> Kind {
    match stat.mode & mode::KIND {
        0 => Kind::File,
        mode::DIRECTORY => Kind::Directory,
        mode::SYMLINK => Kind::Symlink,
        _ => Kind::Special,
    }
}

/// A packet with a stat; none ends the list.
pub fn stat_packet(stat: Option<Stat>) -> Packet {
    Packet { r#type: PacketType::PacketStat.into(), stat, ..Packet::default() }
}

/// A packet about a file.
pub fn packet(kind: PacketType, id: u32, data: Vec<u8>) -> Packet {
    Packet { r#type: kind.into(), id, data, ..Packet::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(mode::permissions(mode::DIRECTORY | mode::STICKY | 0o777), 0o1777);
        assert_eq!(mode::of_permissions(0o4755), mode::SET_UID | 0o755);
        for bits in [0o644, 0o7777, 0o2711] {
            assert_eq!(mode::permissions(mode::of_permissions(bits)), bits);
        }
        let of = |mode| kind(&Stat { mode, ..Stat::default() });
        assert_eq!(of(0o644), Kind::File);
        assert_eq!(of(mode::DEVICE | mode::CHARACTER), Kind::Special);
        assert_eq!(of(mode::SYMLINK | 0o777), Kind::Symlink);
    }
}
