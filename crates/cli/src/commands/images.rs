use super::{Start, block_on};
use crate::args::{HistoryArgs, ImagesArgs, RmiArgs, TagArgs};
use crate::failure::Failure;
use crate::request::{reference, unsupported};
use crate::template::Format;
use crate::{output, sanitise, table, units};
use forge_engine::{HistoryRow, ImageSummary, Removal};
use forge_image::Reference;
use serde_json::{Value, json};
use std::time::SystemTime;

pub fn images(start: &Start, args: &ImagesArgs) -> Result<(), Failure> {
    if let Some(filter) = args.filters.first() {
        return Err(unsupported(&format!("--filter {filter}")).into());
    }
    let format = Format::read(args.format.as_deref())?;
    let mut rows = block_on(async { Ok(start.engine()?.images().await?) })?;
    if let Some(name) = &args.name {
        let wanted = reference(name)?;
        let any_tag = !name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        rows.retain(|row| row.name.as_ref().is_some_and(|name| matches(name, &wanted, any_tag)));
    }
    output::print(&render_images(&rows, args, &format, SystemTime::now())?)?;
    Ok(())
}

fn matches(name: &Reference, wanted: &Reference, any_tag: bool) -> bool {
    name.name() == wanted.name() && (any_tag || name.tag() == wanted.tag())
}

fn render_images(rows: &[ImageSummary], args: &ImagesArgs, format: &Format, now: SystemTime) -> anyhow::Result<String> {
    let fields: Vec<Value> = rows.iter().map(|row| image_fields(row, args.no_trunc, now)).collect();
    let cell = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    match format {
        _ if args.quiet => {
            let mut ids: Vec<String> = fields.iter().map(|row| cell(row, "ID") + "\n").collect();
            ids.dedup();
            Ok(ids.concat())
        }
        Format::Json => Ok(fields.iter().map(|row| format!("{row}\n")).collect()),
        Format::Template(template) => fields.iter().map(|row| Ok(template.render(row)? + "\n")).collect(),
        Format::Table => {
            let columns: &[(&str, &str)] = match args.digests {
                true => &[
                    ("REPOSITORY", "Repository"),
                    ("TAG", "Tag"),
                    ("DIGEST", "Digest"),
                    ("IMAGE ID", "ID"),
                    ("CREATED", "CreatedSince"),
                    ("SIZE", "Size"),
                ],
                false => &[
                    ("REPOSITORY", "Repository"),
                    ("TAG", "Tag"),
                    ("IMAGE ID", "ID"),
                    ("CREATED", "CreatedSince"),
                    ("SIZE", "Size"),
                ],
            };
            Ok(lay_out(columns, &fields))
        }
    }
}

/// A table of rows that are JSON objects of texts.
fn lay_out(columns: &[(&str, &str)], rows: &[Value]) -> String {
    let header: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let cells = |row: &Value| {
        columns.iter().map(|(_, key)| sanitise::line(row[key].as_str().unwrap_or_default()).into_owned()).collect()
    };
    table::layout(&header, &rows.iter().map(cells).collect::<Vec<Vec<String>>>())
}

/// docker's field names for `--format`.
fn image_fields(row: &ImageSummary, full: bool, now: SystemTime) -> Value {
    const NONE: &str = "<none>";
    json!({
        "Containers": "N/A",
        "CreatedAt": row.created.as_deref().unwrap_or("N/A"),
        "CreatedSince": units::ago(row.created.as_deref(), now),
        "Digest": row.digest.as_ref().map_or(NONE, |digest| digest.as_str()),
        "ID": if full { row.id.as_str() } else { row.id.short() },
        "Repository": row.name.as_ref().map_or_else(|| NONE.to_owned(), Reference::familiar_name),
        "SharedSize": "N/A",
        "Size": units::size(row.bytes),
        "Tag": row.name.as_ref().and_then(Reference::tag).unwrap_or(NONE),
        "UniqueSize": "N/A",
    })
}

pub fn history(start: &Start, args: &HistoryArgs) -> Result<(), Failure> {
    let format = Format::read(args.format.as_deref())?;
    let rows = block_on(async { Ok(start.engine()?.history(&args.image).await?) })?;
    output::print(&render_history(&rows, args, &format, SystemTime::now())?)?;
    Ok(())
}

fn render_history(rows: &[HistoryRow], args: &HistoryArgs, format: &Format, now: SystemTime) -> anyhow::Result<String> {
    let fields: Vec<Value> = rows.iter().map(|row| history_fields(row, args, now)).collect();
    match format {
        _ if args.quiet => {
            Ok(fields.iter().map(|row| format!("{}\n", row["ID"].as_str().unwrap_or_default())).collect())
        }
        Format::Json => Ok(fields.iter().map(|row| format!("{row}\n")).collect()),
        Format::Template(template) => fields.iter().map(|row| Ok(template.render(row)? + "\n")).collect(),
        Format::Table => {
            let time = if args.human { ("CREATED", "CreatedSince") } else { ("CREATED AT", "CreatedAt") };
            Ok(lay_out(
                &[("IMAGE", "ID"), time, ("CREATED BY", "CreatedBy"), ("SIZE", "Size"), ("COMMENT", "Comment")],
                &fields,
            ))
        }
    }
}

fn history_fields(row: &HistoryRow, args: &HistoryArgs, now: SystemTime) -> Value {
    let id = row.id.as_ref().map(|id| if args.no_trunc { id.digest().as_str() } else { id.digest().short() });
    json!({
        "Comment": row.comment,
        "CreatedAt": row.created.as_deref().unwrap_or("N/A"),
        "CreatedBy": created_by(&row.created_by, args.no_trunc),
        "CreatedSince": units::ago(row.created.as_deref(), now),
        "ID": id.unwrap_or("<missing>"),
        "Size": if args.human { units::size(row.bytes) } else { row.bytes.to_string() },
    })
}

/// The instruction, in docker's 45 characters.
fn created_by(text: &str, full: bool) -> String {
    const WIDTH: usize = 45;
    let text = text.replace('\t', " ");
    match full || text.chars().count() <= WIDTH {
        true => text,
        false => text.chars().take(WIDTH - 1).chain(['…']).collect(),
    }
}

pub fn tag(start: &Start, args: &TagArgs) -> Result<(), Failure> {
    let name = reference(&args.target)?;
    if name.digest().is_some() {
        return Err(Failure::new("refusing to create a tag with a digest reference"));
    }
    block_on(async { Ok(start.engine()?.tag(&args.source, &name).await?) })
}

/// Removes what can be removed; each failure is told, the rest goes on, as in docker.
pub fn rmi(start: &Start, args: &RmiArgs) -> Result<u8, Failure> {
    block_on(async {
        let engine = start.engine()?;
        let mut code = 0;
        for image in &args.images {
            match engine.remove_image(image, args.force).await {
                Ok(removals) => output::print(&removals.iter().map(removal_line).collect::<String>())?,
                Err(error) => {
                    output::note(Failure::from(error).text("forge").trim_end());
                    code = 1;
                }
            }
        }
        Ok(code)
    })
}

fn removal_line(removal: &Removal) -> String {
    match removal {
        Removal::Untagged(name) => format!("Untagged: {}\n", name.familiar()),
        Removal::Deleted(id) => format!("Deleted: {id}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use forge_image::{Digest, ImageId};
    use std::time::Duration;

    fn summary(name: Option<&str>) -> ImageSummary {
        ImageSummary {
            name: name.map(|name| name.parse().unwrap()),
            id: Digest::sha256(b"x"),
            created: Some("1970-01-01T00:00:00Z".to_owned()),
            bytes: 1_234_567,
            platforms: Vec::new(),
            digest: None,
        }
    }

    fn images_text(line: &str) -> String {
        let words = ["forge", "images"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
        let Command::Images(args) = Cli::read(words.map(Into::into)).unwrap().command else { panic!() };
        let format = Format::read(args.format.as_deref()).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7200);
        render_images(&[summary(Some("app:1.0")), summary(None)], &args, &format, now).unwrap()
    }

    #[test]
    fn images_read_as_dockers() {
        insta::assert_snapshot!(images_text(""), @r"
        REPOSITORY   TAG       IMAGE ID       CREATED       SIZE
        app          1.0       2d711642b726   2 hours ago   1.23MB
        <none>       <none>    2d711642b726   2 hours ago   1.23MB
        ");
        assert_eq!(images_text("-q"), "2d711642b726\n");
        assert_eq!(images_text("--format {{.Repository}}:{{.Tag}}"), "app:1.0\n<none>:<none>\n");
        assert!(images_text("--format json").lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
        assert!(images_text("-q --no-trunc").starts_with("sha256:2d71"));
    }

    #[test]
    fn history_reads_as_dockers() {
        let row = |id, by: &str| HistoryRow {
            id,
            created: Some("1970-01-01T00:00:00Z".to_owned()),
            created_by: by.to_owned(),
            bytes: 5,
            comment: String::new(),
        };
        let rows = [
            row(
                Some(ImageId::new(Digest::sha256(b"x"))),
                "RUN /bin/sh -c echo a line that is longer than the column # buildkit",
            ),
            row(None, "COPY\t/a /b\x1b[2J"),
        ];
        let Command::History(args) = Cli::read(["forge", "history", "x"].map(Into::into)).unwrap().command else {
            panic!()
        };
        let text =
            render_history(&rows, &args, &Format::Table, SystemTime::UNIX_EPOCH + Duration::from_secs(90)).unwrap();
        insta::assert_snapshot!(text, @r"
        IMAGE          CREATED              CREATED BY                                      SIZE      COMMENT
        2d711642b726   About a minute ago   RUN /bin/sh -c echo a line that is longer th…   5B        
        <missing>      About a minute ago   COPY /a /b\x1b[2J                               5B        
        ");
    }
}
