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

/// The messages of an error and all its causes, joined by colons. What was said already is not said again: libraries
/// repeat their causes in their own messages.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
