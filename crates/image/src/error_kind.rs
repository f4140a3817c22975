/// Says who is to blame for an error, so that callers map kinds instead of reading text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// What the user wrote: a Dockerfile, a flag, a name.
    UserInput,
    /// The machine: permissions, disk, kernel features.
    Environment,
    /// A registry or another server.
    Remote,
    /// Something that forge does not do, or not yet.
    Unsupported,
    /// A step of the build or a container ended with a failure of its own.
    Process,
    /// The build was cancelled by whoever asked for it.
    Cancelled,
    /// A defect in forge.
    Internal,
}
