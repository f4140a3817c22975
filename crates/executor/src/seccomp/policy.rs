//! The words of the default policy; the policy itself is in `table`.
//!
//! The verdicts are those of docker's default profile (moby profiles v0.2.3). Numbers that are in no row are unknown
//! to this table and answered with ENOSYS, as a kernel of the table's age would, so that newer libraries fall back.

pub(super) use super::table::TABLE;

/// What becomes of one system call. What is refused gets EPERM unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Allow,
    Deny,
    /// Allowed to whoever has one of these capabilities.
    With(&'static [&'static str]),
    /// Without namespace flags allowed, with them only with CAP_SYS_ADMIN.
    CloneFlags,
    /// Its flags are behind a pointer: with CAP_SYS_ADMIN allowed, else ENOSYS, so that libraries use clone(2).
    Clone3,
    /// Five execution domains that do not weaken anything.
    Personality,
    /// All address families but two that expose the host's kernel or hypervisor.
    SocketFamily,
}

/// One row: name, number on x86-64, number on i386, rule.
pub(super) type Row = (&'static str, u32, u32, Rule);

/// Marks a call that an architecture lacks.
pub(super) const NONE: u32 = u32::MAX;

/// `PER_LINUX`, `PER_LINUX32`, both with `UNAME26`, and the query.
pub(super) const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_ALG: CVE-2026-31431 wrote to the shared page cache through it. AF_VSOCK: it ignores network namespaces.
pub(super) const REFUSED_FAMILIES: [u32; 2] = [38, 40];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
pub(super) const NAMESPACE_FLAGS: u32 = 0x7e02_0000;
