use crate::output::without_nulls;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use forge_session::{Event, SourceSpan, StatusUpdate, VertexUpdate, WarningNotice};
use serde_json::{Value, json};
use std::time::SystemTime;

/// One event as one line of BuildKit's `rawjson`: a status object with one of its four lists filled.
pub fn line(event: &Event) -> String {
    let (list, entry) = match event {
        Event::Vertex(update) => ("vertexes", vertex(update)),
        Event::Status(update) => ("statuses", status(update)),
        Event::Log { vertex, stream, data, timestamp } => {
            let data = BASE64_STANDARD.encode(data);
            ("logs", json!({"vertex": vertex, "stream": *stream as u8, "data": data, "timestamp": time(*timestamp)}))
        }
        Event::Warning(notice) => ("warnings", warning(notice)),
    };
    format!("{}\n", json!({ list: [without_nulls(entry)] }))
}

fn vertex(update: &VertexUpdate) -> Value {
    let group =
        update.progress_group.as_ref().map(|group| json!({"id": group.id, "name": group.name, "weak": group.weak}));
    json!({
        "digest": update.digest,
        "inputs": (!update.inputs.is_empty()).then_some(&update.inputs),
        "name": update.name,
        "started": update.started.map(time),
        "completed": update.completed.map(time),
        "cached": update.cached.then_some(true),
        "error": update.error,
        "progressGroup": group,
    })
}

fn status(update: &StatusUpdate) -> Value {
    json!({
        "id": update.id,
        "vertex": update.vertex,
        "name": (!update.name.is_empty()).then_some(&update.name),
        "total": (update.total > 0).then_some(update.total),
        "current": update.current,
        "timestamp": time(update.timestamp),
        "started": update.started.map(time),
        "completed": update.completed.map(time),
    })
}

fn warning(notice: &WarningNotice) -> Value {
    let encoded = |text: &String| BASE64_STANDARD.encode(text);
    json!({
        "vertex": notice.vertex,
        "level": notice.level,
        "short": encoded(&notice.short),
        "detail": (!notice.detail.is_empty()).then(|| notice.detail.iter().map(encoded).collect::<Vec<_>>()),
        "url": notice.url,
        "sourceInfo": notice.span.as_ref().map(|span| json!({"filename": span.file})),
        "range": notice.span.as_ref().map(range),
    })
}

fn range(span: &SourceSpan) -> Value {
    let position = |line: u32| json!({"line": line, "character": 0});
    json!([{"start": position(span.first_line), "end": position(span.last_line)}])
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::script::Script;
    use super::*;

    #[test]
    fn a103_every_event_is_one_line_of_json() {
        let script =
            Script::default().start(0, "a", "RUN \x1b[2J\nx").log(5, "a", "\u{9b}\n").status(6, "a", "copy", 7, None);
        let lines: Vec<String> = script.events.iter().map(|(_, event)| line(event)).collect();
        assert!(lines.iter().all(|line| line.matches('\n').count() == 1 && !line.contains('\x1b')));
        let digest = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
        assert_eq!(
            lines[0],
            format!(
                "{{\"vertexes\":[{{\"digest\":\"{digest}\",\"name\":\"RUN \\u001b[2J\\nx\",\"started\":\"2023-11-14T22:13:20.000000000Z\"}}]}}\n"
            )
        );
        assert_eq!(
            lines[1],
            format!(
                "{{\"logs\":[{{\"vertex\":\"{digest}\",\"stream\":1,\"data\":\"wpsK\",\"timestamp\":\"2023-11-14T22:13:20.005000000Z\"}}]}}\n"
            )
        );
        let status: Value = serde_json::from_str(&lines[2]).unwrap();
        assert_eq!(status["statuses"][0]["current"], 7);
    }
}
