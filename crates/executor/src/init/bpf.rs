//! Device programs of control groups, by bpf(2).
#![allow(unsafe_code)]

use super::sys::check;
use rustix::io::{Errno, Result};
use std::ffi::c_long;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const BPF_CGROUP_DEVICE: u32 = 6;

fn bpf(command: c_long, attributes: &mut [u64; 16]) -> Result<c_long> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are valid for reads and writes of their whole size; unknown trailing zeroes are ignored.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) })
}

/// Two adjacent `u32` fields of `union bpf_attr`.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn descriptor_number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd() as u32 // never negative
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program.
pub(super) fn load_device_program(program: &[super::device_program::EbpfInstruction]) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: c_long = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let mut attributes = [0; 16];
    attributes[0] = pair(BPF_PROG_TYPE_CGROUP_DEVICE, program.len() as u32);
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = c"Apache-2.0".as_ptr() as u64;
    let descriptor = bpf(BPF_PROG_LOAD, &mut attributes)? as RawFd;
    // SAFETY: the kernel returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Attaches a device program beside those that may be there.
pub(super) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    const BPF_PROG_ATTACH: c_long = 8;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let mut attributes = [0; 16];
    attributes[0] = pair(descriptor_number(cgroup), descriptor_number(program));
    attributes[1] = pair(BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI);
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

/// Counts the device programs of a cgroup.
pub(super) fn device_programs(cgroup: BorrowedFd<'_>) -> Result<u32> {
    const BPF_PROG_QUERY: c_long = 16;
    let mut attributes = [0; 16];
    attributes[0] = pair(descriptor_number(cgroup), BPF_CGROUP_DEVICE);
    let asked = bpf(BPF_PROG_QUERY, &mut attributes);
    match asked {
        // No room was given for the ids; the count is there all the same.
        Ok(_) | Err(Errno::NOSPC) => Ok(attributes[3] as u32),
        Err(errno) => Err(errno),
    }
}
