//! The last steps: working directory, program, execve(2).

use super::paths::{PROC_SUPER_MAGIC, PointKind, Root, Stub};
use super::sys;
use crate::message::{Doing, Failure};
use crate::{Hidden, ProcessSpec, profile};
use rustix::fs::{AtFlags, FileType, Gid, ResolveFlags, Uid, chownat, fstat, fstatfs};
use rustix::io::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Moves into the working directory, making it when missing, for the user who will work in it. Not a stub: docker keeps
/// it too.
pub(super) fn enter_directory(root: &Root, process: &ProcessSpec) -> Result<(), Failure> {
    let path = process.cwd.as_path();
    let directory = make_directory(root, process)?;
    rustix::process::fchdir(&directory).doing(|| format!("enter {}", path.display()))?;
    let reason = || "it is outside the root".into();
    still_inside(root, &directory).map_err(|_| Failure::WorkingDirectory { path: path.into(), reason: reason() })
}

/// Opens the working directory, making it when missing.
pub(super) fn make_directory(root: &Root, process: &ProcessSpec) -> Result<OwnedFd, Failure> {
    let path = process.cwd.as_path();
    let refused = |reason: &str| Failure::WorkingDirectory { path: path.into(), reason: reason.into() };
    if !path.has_root() {
        return Err(refused("not an absolute path"));
    }
    let mut made = Vec::new();
    let directory = root.open_or_create(path, PointKind::Directory, &mut made)?;
    let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    for Stub { parent, record, .. } in &made {
        let given = chownat(parent, &record.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        given.doing(|| format!("give {} to the process", path.display()))?;
    }
    let stat = fstat(&directory).doing(|| format!("inspect {}", path.display()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(refused("not a directory"));
    }
    // Descriptors of other processes lie there, and with them ways out (CVE-2024-21626).
    let system = fstatfs(&directory).doing(|| format!("inspect {}", path.display()))?;
    if system.f_type as u32 == PROC_SUPER_MAGIC {
        return Err(refused("it is inside procfs"));
    }
    Ok(directory)
}

/// Looks for the program as execve(2) would, to tell what is missing from what is no program; gives its path. What only a
/// runtime's own mounts would show is left to the runtime.
pub(super) fn find(root: &Root, process: &ProcessSpec) -> Result<CString, Failure> {
    let program = Program::new(process)?;
    let mut refusal = None;
    for candidate in &program.candidates {
        let path = process.cwd.join(OsStr::from_bytes(candidate.as_bytes()));
        let unseen = ["/proc", "/sys", "/dev"].iter().any(|folder| path.starts_with(folder));
        match root.open(&path).and_then(fstat) {
            _ if unseen => return Ok(candidate.clone()),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Ok(stat) => {
                let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                if file && stat.st_mode & 0o111 != 0 {
                    return Ok(candidate.clone());
                }
                refusal = refusal.or(Some(Errno::ACCESS));
            }
            Err(_) => return Ok(candidate.clone()),
        }
    }
    match refusal {
        Some(errno) => Err(program.not_executable(errno)),
        None => Err(Failure::NotFound { program: program.name }),
    }
}

/// The kernel prefixes `(unreachable)` to a working directory that is not below the root.
fn still_inside(root: &Root, directory: &OwnedFd) -> rustix::io::Result<()> {
    let text = rustix::process::getcwd(Vec::new())?;
    let path = Path::new(OsStr::from_bytes(text.as_bytes()));
    let again = root.resolve(path, rustix::fs::OFlags::PATH, ResolveFlags::NO_SYMLINKS)?;
    let (one, other) = (fstat(directory.as_fd())?, fstat(&again)?);
    match (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
        true => Ok(()),
        false => Err(Errno::XDEV),
    }
}

/// The program, ready for execve(2).
pub(super) struct Program {
    name: OsString,
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Turns arguments and environment into what the kernel takes.
    pub(super) fn new(process: &ProcessSpec) -> Result<Self, Failure> {
        let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
            return Err(Failure::InvalidSpec { reason: "no program given".into() });
        };
        Ok(Self {
            name: name.clone(),
            candidates: candidates(name, &process.env)?,
            arguments: strings(&process.args)?,
            environment: environment(process)?,
        })
    }

    /// Replaces this process; returns only the reason for which that failed.
    pub(super) fn execute(&self) -> Failure {
        let mut refusal = None;
        for candidate in &self.candidates {
            match sys::execve(candidate, &self.arguments, &self.environment) {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::TOOBIG => return Failure::ArgumentsTooLong,
                // A file further along the path may do, as execvp(3) has it.
                Errno::ACCESS => refusal = refusal.or(Some(Errno::ACCESS)),
                errno => return self.not_executable(errno),
            }
        }
        match refusal {
            Some(errno) => self.not_executable(errno),
            None => Failure::NotFound { program: self.name.clone() },
        }
    }

    fn not_executable(&self, errno: Errno) -> Failure {
        Failure::NotExecutable { program: self.name.clone(), errno: errno.raw_os_error() }
    }
}

fn strings(all: &[OsString]) -> Result<Vec<CString>, Failure> {
    all.iter().map(|text| string(text.as_bytes().to_vec())).collect()
}

/// A secret variable takes the place of another one of its name.
fn environment(process: &ProcessSpec) -> Result<Vec<CString>, Failure> {
    let name = |pair: &[u8]| pair.split(|&byte| byte == b'=').next().unwrap_or_default().to_vec();
    let secret: Vec<Vec<u8>> = process.secret_env.iter().map(|pair| name(pair.reveal())).collect();
    let open = process.env.iter().map(|pair| pair.as_bytes()).filter(|pair| !secret.contains(&name(pair)));
    open.chain(process.secret_env.iter().map(Hidden::reveal)).map(|pair| string(pair.to_vec())).collect()
}

fn string(bytes: Vec<u8>) -> Result<CString, Failure> {
    CString::new(bytes)
        .map_err(|_| Failure::InvalidSpec { reason: "an argument or variable contains a zero byte".into() })
}

/// Where the program may be. An empty entry of the path is the working directory.
fn candidates(name: &OsStr, environment: &[OsString]) -> Result<Vec<CString>, Failure> {
    if name.as_bytes().contains(&b'/') {
        return Ok(vec![string(name.as_bytes().to_vec())?]);
    }
    let path = environment.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    path.unwrap_or(profile::DEFAULT_PATH.as_bytes())
        .split(|&byte| byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            string(Path::new(OsStr::from_bytes(directory)).join(name).into_os_string().into_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, path: &str) -> String {
        let all = candidates(OsStr::new(name), &[format!("PATH={path}").into()]).expect("no zero bytes");
        all.iter().map(|one| one.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn programs_are_looked_up_along_the_given_path() {
        assert_eq!(found("sh", "/usr/bin:/bin"), "/usr/bin/sh /bin/sh");
        assert_eq!(found("./sh", "/usr/bin:/bin"), "./sh");
        assert_eq!(found("/x/sh", "/bin"), "/x/sh");
        assert_eq!(found("sh", ":/bin:"), "./sh /bin/sh ./sh");
    }

    #[test]
    fn without_a_path_docker_s_is_used() {
        let all = candidates(OsStr::new("sh"), &[]).expect("no zero bytes");
        assert_eq!(all.len(), 6);
    }
}
