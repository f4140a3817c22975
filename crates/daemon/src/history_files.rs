//! What is remembered of builds that ended, in files: for whoever asks after the daemon was started anew.

use forge_buildkit_proto::moby::buildkit::v1::BuildHistoryRecord;
use forge_image::Digest;
use prost::Message;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// No build says more than this.
const MOST: u64 = 256 << 20;

/// The ending of a file that is whole.
const WHOLE: &str = "build";

/// A build as its file has it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeptBuild {
    #[prost(message, optional, tag = "1")]
    pub record: Option<BuildHistoryRecord>,
    /// What the record names by digests: logs, trace, errors, provenance.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub contents: Vec<Vec<u8>>,
    /// Later builds have larger ones.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// The files of one daemon.
///
/// ```text
/// <root>/session-history/<sha256 of the build's name>.build    a [`KeptBuild`]
/// ```
///
/// A file takes its name when it is whole. They are remembrances: what cannot be written or read is no reason to fail a build.
pub(crate) struct HistoryFiles {
    folder: PathBuf,
}

impl HistoryFiles {
    pub(crate) fn new(root: &Path) -> Self {
        Self { folder: root.join("session-history") }
    }

    fn place(&self, reference: &str) -> PathBuf {
        self.folder.join(Digest::sha256(reference.as_bytes()).hex()).with_extension(WHOLE)
    }

    /// Writes a build's file anew. Blocks.
    pub(crate) fn save(&self, reference: &str, build: &KeptBuild) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let place = self.place(reference);
        let begun = place.with_extension("new");
        File::create(&begun)?.write_all(&build.encode_to_vec())?;
        fs::rename(begun, place)
    }

    /// Removes a build's file. Blocks.
    pub(crate) fn remove(&self, reference: &str) {
        // It may never have been written.
        let _ = fs::remove_file(self.place(reference));
    }

    /// All builds, the oldest first. What is no build's file, or that of another version, is removed. Blocks.
    pub(crate) fn load(&self) -> Vec<KeptBuild> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            match read(&entry.path()) {
                Some(build) => found.push(build),
                None => _ = fs::remove_file(entry.path()),
            }
        }
        found.sort_by_key(|build| build.number);
        found
    }
}

fn read(path: &Path) -> Option<KeptBuild> {
    let is_whole = path.extension().is_some_and(|ending| ending == WHOLE);
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() <= MOST);
    if !is_whole || !is_file {
        return None;
    }
    let build = KeptBuild::decode(fs::read(path).ok()?.as_slice()).ok()?;
    build.record.as_ref()?.completed_at.is_some().then_some(build)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_buildkit_proto::google::protobuf::Timestamp;

    fn build(reference: &str, number: u64) -> KeptBuild {
        let record = BuildHistoryRecord {
            r#ref: reference.to_owned(),
            completed_at: Some(Timestamp { seconds: 1, nanos: 2 }),
            ..BuildHistoryRecord::default()
        };
        KeptBuild { record: Some(record), contents: vec![b"log".to_vec()], number }
    }

    #[test]
    fn builds_are_found_again_in_their_order() {
        let root = tempfile::tempdir().unwrap();
        let files = HistoryFiles::new(root.path());
        assert!(files.load().is_empty());
        files.save("b", &build("b", 1)).unwrap();
        files.save("../a", &build("../a", 2)).unwrap();
        files.save("c", &build("c", 0)).unwrap();
        assert_eq!(files.load(), [build("c", 0), build("b", 1), build("../a", 2)]);
        files.save("b", &build("b", 3)).unwrap();
        files.remove("c");
        files.remove("never there");
        assert_eq!(files.load(), [build("../a", 2), build("b", 3)]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "a name is no path");
    }

    #[test]
    fn what_is_no_build_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let files = HistoryFiles::new(root.path());
        files.save("b", &build("b", 1)).unwrap();
        let folder = root.path().join("session-history");
        fs::write(folder.join("half.new"), b"half").unwrap();
        fs::write(folder.join("broken.build"), b"\xff\xff").unwrap();
        let running = KeptBuild { record: Some(BuildHistoryRecord::default()), ..build("r", 4) };
        files.save("r", &running).unwrap();
        assert_eq!(files.load(), [build("b", 1)]);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }
}
