//! What clients can ask of a builder and this one does not do: refused by name, or told where the build is as good without.

use forge_buildkit_proto::moby::buildkit::v1::SolveRequest;
use tonic::Status;

/// Refuses what would be missing from the result, or allowed although it must not be.
///
/// # Errors
/// `Unimplemented`, with the name of what is not done.
pub(crate) fn refuse(request: &SolveRequest) -> Result<(), Status> {
    let refused = |what: &str| Err(Status::unimplemented(format!("{what} is not supported")));
    if request.enable_session_exporter {
        return refused("a session exporter");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let refused = |request: &SolveRequest| refuse(request).unwrap_err().message().to_owned();
        let exporter = SolveRequest { enable_session_exporter: true, ..SolveRequest::default() };
        assert_eq!(refused(&exporter), "a session exporter is not supported");
    }
}
