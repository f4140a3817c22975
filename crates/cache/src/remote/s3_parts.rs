//! Large objects of S3 are written in parts: one that is lost is sent again alone, and an object can have 5 TiB instead of 5 GiB.

use super::objects::{ObjectStore as _, unexpected};
use super::s3::{Asked, Bucket};
use super::signature_v4::escaped;
use super::{blocking, failed};
use crate::CacheError;
use forge_registry::{TransferContext, WebBody, WebMethod, WebReply};
use ring::digest;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// What is larger goes in parts of this size. S3 wants 5 MiB at least.
pub(super) const PART: u64 = 16 << 20;

/// So many parts make an object at most.
const MOST_PARTS: u64 = 10_000;

/// Answers are a few elements.
const LONGEST_ANSWER: u64 = 64 << 10;

impl Bucket {
    /// Writes an object. One that fails is given up, for parts of objects that never come to be are kept, and paid for.
    pub(super) async fn put_in_parts(
        &self,
        context: &TransferContext,
        name: &str,
        file: &Arc<File>,
        size: u64,
    ) -> Result<(), CacheError> {
        let upload = self.begin(context, name).await?;
        let written = match self.write_parts(context, name, (file, size), &upload).await {
            Ok(tags) => self.complete(context, name, &upload, &tags).await,
            Err(error) => Err(error),
        };
        if written.is_err() {
            let query = format!("uploadId={upload}");
            // What has failed is told already.
            let _ = self.ask(context, Asked { query, ..Asked::about(name, WebMethod::Delete) }).await;
        }
        written
    }

    /// The upload's id, escaped.
    async fn begin(&self, context: &TransferContext, name: &str) -> Result<String, CacheError> {
        let query = "uploads=".to_owned();
        let reply = self.ask(context, Asked { query, ..Asked::about(name, WebMethod::Post) }).await?;
        let answer = self.answer(reply).await?;
        let id = element(&answer, "UploadId").filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| failed(self.name(), io::Error::other("an upload has no id")))?;
        Ok(escaped(id).replace('/', "%2F"))
    }

    /// The parts' tags, in order.
    async fn write_parts(
        &self,
        context: &TransferContext,
        name: &str,
        (file, size): (&Arc<File>, u64),
        upload: &str,
    ) -> Result<Vec<String>, CacheError> {
        let length = part_length(size);
        let mut tags = Vec::new();
        for (number, offset) in (1..).zip((0..size).step_by(usize::try_from(length).unwrap_or(usize::MAX))) {
            let length = length.min(size - offset);
            let (read, place) = (file.clone(), self.name());
            let sha256 = blocking(move || sha256(&read, offset, length).map_err(|error| failed(place, error))).await?;
            let query = format!("partNumber={number}&uploadId={upload}");
            let body = WebBody::Part(file.clone(), offset, length);
            let asked = Asked { query, body, sha256, ..Asked::about(name, WebMethod::Put) };
            let reply = self.ask(context, asked).await?;
            match (reply.status(), reply.header("etag")) {
                (200..=299, Some(tag)) => tags.push(tag.to_owned()),
                _ => return Err(unexpected(self.name(), reply).await),
            }
        }
        Ok(tags)
    }

    async fn complete(
        &self,
        context: &TransferContext,
        name: &str,
        upload: &str,
        tags: &[String],
    ) -> Result<(), CacheError> {
        let document = completion(tags).into_bytes();
        let sha256 = hex::encode(digest::digest(&digest::SHA256, &document));
        let (query, body) = (format!("uploadId={upload}"), WebBody::Bytes(document));
        let asked = Asked { query, body, sha256, ..Asked::about(name, WebMethod::Post) };
        let answer = self.answer(self.ask(context, asked).await?).await?;
        // The status comes before the work, which may fail.
        match answer.contains("<Error") {
            false => Ok(()),
            true => {
                let why = element(&answer, "Message").unwrap_or("an upload was not completed");
                let why: String = why.chars().filter(|one| !one.is_control()).take(200).collect();
                Err(failed(self.name(), io::Error::other(why)))
            }
        }
    }

    async fn answer(&self, reply: WebReply) -> Result<String, CacheError> {
        match reply.status() {
            200..=299 => {
                let bytes = reply.bytes(LONGEST_ANSWER).await.map_err(|error| failed(self.name(), error))?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => Err(unexpected(self.name(), reply).await),
        }
    }
}

fn part_length(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS))
}

fn completion(tags: &[String]) -> String {
    let escaped = |tag: &str| tag.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let parts = (1..)
        .zip(tags)
        .map(|(number, tag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", escaped(tag)));
    let parts: String = parts.collect();
    format!(
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{parts}</CompleteMultipartUpload>"
    )
}

/// The text of the first element of a name.
fn element<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// The SHA-256 of a part, in hexadecimal.
fn sha256(file: &File, offset: u64, length: u64) -> io::Result<String> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < length {
        let piece = usize::try_from(length - at).unwrap_or(buffer.len()).min(buffer.len());
        file.read_exact_at(&mut buffer[..piece], offset + at)?;
        hash.update(&buffer[..piece]);
        at += piece as u64;
    }
    Ok(hex::encode(hash.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_ten_thousand_parts_at_most() {
        assert_eq!(part_length(PART + 1), PART);
        assert_eq!(part_length(PART * MOST_PARTS), PART);
        let largest = 5 << 40;
        assert!(part_length(largest) > PART && largest.div_ceil(part_length(largest)) <= MOST_PARTS);
    }

    #[test]
    fn answers_are_read_and_requests_written() {
        let begun =
            "<InitiateMultipartUploadResult><Key>k</Key><UploadId>a/b</UploadId></InitiateMultipartUploadResult>";
        assert_eq!((element(begun, "UploadId"), element(begun, "Bucket")), (Some("a/b"), None));
        let written = completion(&["\"1<\"".to_owned(), "2".to_owned()]);
        let parts = "<Part><PartNumber>1</PartNumber><ETag>\"1&lt;\"</ETag></Part>\
            <Part><PartNumber>2</PartNumber><ETag>2</ETag></Part></CompleteMultipartUpload>";
        assert!(written.ends_with(parts), "{written}");
    }
}
