//! What a daemon tells of a build, as the events of one in this process.

use forge_buildkit_proto::google::protobuf::Timestamp;
use forge_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use forge_image::Digest;
use forge_session::{Event, LogStream, ProgressGroup, SourceSpan, StatusUpdate, VertexUpdate, WarningNotice};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The events of one message, in the order in which displays want them. What has no digest that can be read is left out.
pub(crate) fn events(told: StatusResponse) -> Vec<Event> {
    let vertices = told.vertexes.into_iter().filter_map(vertex).map(Event::Vertex);
    let statuses = told.statuses.into_iter().filter_map(status).map(Event::Status);
    let logs = told.logs.into_iter().filter_map(log);
    let warnings = told.warnings.into_iter().map(warning).map(Event::Warning);
    vertices.chain(statuses).chain(logs).chain(warnings).collect()
}

fn vertex(vertex: Vertex) -> Option<VertexUpdate> {
    Some(VertexUpdate {
        digest: vertex.digest.parse().ok()?,
        inputs: vertex.inputs.iter().filter_map(|input| input.parse().ok()).collect(),
        name: vertex.name,
        started: vertex.started.map(time),
        completed: vertex.completed.map(time),
        cached: vertex.cached,
        error: Some(vertex.error).filter(|error| !error.is_empty()),
        progress_group: vertex.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
    })
}

fn status(status: VertexStatus) -> Option<StatusUpdate> {
    Some(StatusUpdate {
        vertex: status.vertex.parse().ok()?,
        id: status.id,
        name: status.name,
        total: u64::try_from(status.total).unwrap_or_default(),
        current: u64::try_from(status.current).unwrap_or_default(),
        timestamp: status.timestamp.map_or(UNIX_EPOCH, time),
        started: status.started.map(time),
        completed: status.completed.map(time),
    })
}

fn log(log: VertexLog) -> Option<Event> {
    let stream = if log.stream == 2 { LogStream::Stderr } else { LogStream::Stdout };
    let timestamp = log.timestamp.map_or(UNIX_EPOCH, time);
    Some(Event::Log { vertex: log.vertex.parse().ok()?, stream, data: log.msg, timestamp })
}

fn warning(warning: VertexWarning) -> WarningNotice {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let vertex: Option<Digest> = warning.vertex.parse().ok();
    let line = |position: Option<forge_buildkit_proto::pb::Position>| u32::try_from(position?.line).ok();
    let range = warning.ranges.first().and_then(|range| Some((line(range.start)?, line(range.end)?)));
    let place = warning.info.as_ref().zip(range);
    let span =
        place.map(|(info, (first_line, last_line))| SourceSpan { file: info.filename.clone(), first_line, last_line });
    let excerpt = place.filter(|(info, _)| !info.data.is_empty()).map(|(info, (first, last))| {
        forge_engine::excerpt(&info.filename, &String::from_utf8_lossy(&info.data), first, last)
    });
    WarningNotice {
        vertex,
        level: u32::try_from(warning.level).unwrap_or(1),
        short: text(&warning.short),
        detail: warning.detail.iter().map(|detail| text(detail)).collect(),
        url: Some(warning.url).filter(|url| !url.is_empty()),
        span,
        excerpt,
    }
}

/// A time as it crosses the wire.
pub(crate) fn time(timestamp: Timestamp) -> SystemTime {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or_default();
    let nanos = u32::try_from(timestamp.nanos).unwrap_or_default().min(999_999_999);
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_buildkit_proto::pb;

    #[test]
    fn messages_become_events() {
        let digest = Digest::sha256(b"x").to_string();
        let vertex = Vertex { digest: digest.clone(), name: "RUN x".into(), error: "no".into(), ..Vertex::default() };
        let log = VertexLog { vertex: digest, stream: 2, msg: b"words".to_vec(), timestamp: None };
        let position = |line| Some(pb::Position { line, ..pb::Position::default() });
        let warning = VertexWarning {
            short: b"a remark".to_vec(),
            info: Some(pb::SourceInfo {
                filename: "Dockerfile".into(),
                data: b"FROM a".to_vec(),
                ..Default::default()
            }),
            ranges: vec![pb::Range { start: position(1), end: position(1) }],
            ..VertexWarning::default()
        };
        let told =
            StatusResponse { vertexes: vec![vertex], logs: vec![log], warnings: vec![warning], ..Default::default() };
        let events = events(told);
        assert!(matches!(&events[0], Event::Vertex(update) if update.error.as_deref() == Some("no")));
        assert!(matches!(&events[1], Event::Log { stream: LogStream::Stderr, data, .. } if data == b"words"));
        let Event::Warning(notice) = &events[2] else { panic!("{events:?}") };
        assert!(notice.excerpt.as_ref().unwrap().contains(">>> FROM a"));
        let foreign = Vertex { digest: "none".into(), ..Vertex::default() };
        assert!(super::events(StatusResponse { vertexes: vec![foreign], ..Default::default() }).is_empty());
    }
}
