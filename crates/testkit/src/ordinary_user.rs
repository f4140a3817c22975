//! Runs a test program again as an ordinary user, whom only a mount namespace of the test's own knows.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

const UID: u32 = 4242;

/// The shell stays: with the last process of a mount namespace go the names of the files in it, as of this program. What
/// carries packets needs the device that most machines give to everybody.
const ENTER: &str = "set -e; mount --bind \"$FOLDER\" /mnt; mount --bind \"$PROGRAM\" /mnt/program; \
    for file in subuid subgid passwd; do mount --bind /mnt/$file /etc/$file; done; cd /mnt; \
    [ ! -e /dev/net/tun ] || { mknod -m 666 tun c 10 200; mount --bind tun /dev/net/tun; }; \
    setpriv --reuid=4242 --regid=4242 --groups=4343 env TMPDIR=/mnt/tmp \"$ASKED=1\" /mnt/program --test-threads 2";

/// Runs the test program that this is as an ordinary user with subordinate ids; gives all that it wrote, after a success.
///
/// `asked` is the environment variable that tells the program what it is now. `folder` is where a temporary folder may be made;
/// it need not be open to the user.
///
/// Returns `None` after saying why the test is skipped.
///
/// # Panics
/// The program fails, or what the test needs is missing and `FORGE_REQUIRE_PRIVILEGED=1`.
pub fn run_again_as_user(test: &str, asked: &str, folder: &str) -> Option<String> {
    if !crate::installed("newuidmap", test) || !crate::installed("setpriv", test) {
        return None;
    }
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    furnish(folder.path());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", ENTER]).env("FOLDER", folder.path()).env("ASKED", asked);
    let ran = command.env("PROGRAM", env::current_exe().expect("the program's path")).output().expect("unshare runs");
    let text = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && text.contains(" 0 failed"), "{text}");
    Some(text)
}

fn furnish(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("a file");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::create_dir(folder.join("tmp")).expect("a folder");
    chown(folder.join("tmp"), Some(UID), Some(UID)).expect("an owner");
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    write("passwd", &format!("{passwd}tester:x:{UID}:{UID}::/mnt:/bin/sh\n"));
    write("program", "");
    write("subuid", "tester:7000000:65536\n");
    write("subgid", "tester:7000000:65536\n");
}
