use crate::ExecutorError;
use crate::container::{Stdio, StdioTarget};
use rustix::io::fcntl_dupfd_cloexec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The descriptors a process is given.
pub(crate) struct Streams {
    pub(crate) given: [bool; 3],
    descriptors: Vec<OwnedFd>,
}

impl Streams {
    pub(crate) fn collect(io: Stdio, terminal: bool) -> Result<Self, ExecutorError> {
        let mut streams = Self { given: [false; 3], descriptors: Vec::new() };
        if terminal {
            return Ok(streams);
        }
        let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        for (index, target) in [io.stdin, io.stdout, io.stderr].into_iter().enumerate() {
            let descriptor = match target {
                StdioTarget::Null => continue,
                StdioTarget::Fd(descriptor) => descriptor,
                StdioTarget::Inherit => fcntl_dupfd_cloexec(own[index], 3)
                    .map_err(|errno| ExecutorError::system("duplicate a standard stream", errno))?,
            };
            streams.given[index] = true;
            streams.descriptors.push(descriptor);
        }
        Ok(streams)
    }

    pub(crate) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }
}
