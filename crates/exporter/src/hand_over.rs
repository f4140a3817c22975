//! Hands images to other container engines of this machine.

use crate::docker_archive::{NamedBundle, add_docker_files, only_package};
use crate::engine_api::{Answer, EngineApi};
use crate::layout::{Layout, LayoutDestination};
use crate::package::Bundle;
use crate::work::blocking;
use crate::{ExportError, ExportSettings, Exported, ImageSet};
use forge_image::{DiffId, Digest};
use forge_registry::TransferContext;
use forge_store::Compression;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tokio_util::sync::CancellationToken;

/// A container engine of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// docker, by its engine API. Layers that it has are not sent.
    Docker {
        /// Its socket.
        socket: PathBuf,
    },
    /// podman.
    Podman {
        /// Its socket; `None` where its program is run.
        socket: Option<PathBuf>,
    },
    /// containerd, by its client `ctr`. Blobs that it has are not sent.
    Containerd {
        /// Its socket; `None` for the client's own choice.
        address: Option<PathBuf>,
        /// The namespace that the image is for; nerdctl's and ctr's is `default`, Kubernetes' is `k8s.io`.
        namespace: String,
    },
}

impl Recipient {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Docker { .. } => "docker",
            Self::Podman { .. } => "podman",
            Self::Containerd { .. } => "containerd",
        }
    }
}

/// Sends images to an engine, which then has them under the settings' names. Layers made here leave as bare tars where the
/// settings name no compression: nothing is gained by compressing what is unpacked at once.
///
/// # Errors
/// The engine is not there or refuses; docker and podman take one platform only; containerd wants a name.
pub async fn hand_over(
    context: &TransferContext,
    images: &ImageSet,
    settings: &ExportSettings,
    recipient: &Recipient,
) -> Result<Exported, ExportError> {
    if settings.names.is_empty() && matches!(recipient, Recipient::Containerd { .. }) {
        return Err(ExportError::Nothing { what: "containerd knows images by their names: there is none" });
    }
    let bundle = Bundle::of(context, images, settings, Compression::None).await?;
    let exported = Exported::of(&bundle, &settings.names);
    let diff_ids =
        images.images().first().map(|image| image.layers.iter().map(|layer| layer.diff_id.clone()).collect());
    let parcel = Parcel {
        context: context.clone(),
        diff_ids: diff_ids.unwrap_or_default(),
        image: NamedBundle { names: settings.names.clone(), bundle },
    };
    let recipient = recipient.clone();
    blocking(move || match recipient {
        Recipient::Docker { socket } => parcel.to_docker(&EngineApi::at(&socket)),
        Recipient::Podman { socket: Some(socket) } => {
            only_package(&parcel.image.bundle)?;
            parcel.post("podman", &EngineApi::at(&socket), &BTreeSet::new())
        }
        Recipient::Podman { socket: None } => parcel.to_podman(),
        Recipient::Containerd { address, namespace } => parcel.to_containerd(&Ctr { address, namespace }),
    })
    .await?;
    Ok(exported)
}

/// Sends an engine an archive that comes from elsewhere: docker's format for docker and podman, an OCI layout for containerd.
/// Nothing is left out of it. Blocks.
///
/// # Errors
/// The engine is not there or refuses, or `write` fails.
pub fn hand_archive(
    recipient: &Recipient,
    cancel: &CancellationToken,
    write: impl FnOnce(Box<dyn Write + Send>) -> io::Result<()>,
) -> Result<(), ExportError> {
    let write = |stream| write(stream).map_err(ExportError::WriteStream);
    match recipient {
        Recipient::Docker { socket } => post("docker", &EngineApi::at(socket), cancel, write),
        Recipient::Podman { socket: Some(socket) } => post("podman", &EngineApi::at(socket), cancel, write),
        Recipient::Podman { socket: None } => feed("podman", podman()?, write),
        Recipient::Containerd { address, namespace } => {
            let ctr = Ctr { address: address.clone(), namespace: namespace.clone() };
            feed("containerd", ctr.import()?, write)
        }
    }
}

/// An image on its way.
struct Parcel {
    context: TransferContext,
    /// The layers of the first image.
    diff_ids: Vec<DiffId>,
    image: NamedBundle,
}

impl Parcel {
    /// docker's classic store takes a layer's place in an archive to be empty where it has that layer upon the same layers.
    /// Where it turns out not to, everything is sent.
    fn to_docker(&self, api: &EngineApi) -> Result<(), ExportError> {
        let package = only_package(&self.image.bundle)?;
        let known = known_layers(api, &self.diff_ids).map_err(absent("docker"))?;
        let (there, needed) = package.layers.split_at(known.min(package.layers.len()));
        let needed: BTreeSet<&Digest> = needed.iter().map(|layer| &layer.digest).collect();
        let left_out = there.iter().map(|layer| &layer.digest).filter(|digest| !needed.contains(digest));
        let left_out: BTreeSet<Digest> = left_out.cloned().collect();
        match self.post("docker", api, &left_out) {
            Err(ExportError::RefusedByEngine { .. }) if !left_out.is_empty() => {
                self.post("docker", api, &BTreeSet::new())
            }
            result => result,
        }
    }

    fn post(&self, engine: &'static str, api: &EngineApi, left_out: &BTreeSet<Digest>) -> Result<(), ExportError> {
        let cancel = self.context.session.cancellation();
        post(engine, api, cancel, |stream| self.write(stream, left_out, Format::Docker))
    }

    fn write(
        &self,
        stream: Box<dyn Write + Send>,
        left_out: &BTreeSet<Digest>,
        format: Format,
    ) -> Result<(), ExportError> {
        let mut layout = Layout::default();
        layout.add_bundle(&self.image.bundle, &self.image.names);
        if format == Format::Docker {
            add_docker_files(&mut layout, std::slice::from_ref(&self.image))?;
        }
        layout.leave_out(left_out);
        layout.write(&self.context, LayoutDestination::Archive(stream))
    }

    fn to_podman(&self) -> Result<(), ExportError> {
        only_package(&self.image.bundle)?;
        feed("podman", podman()?, |stream| self.write(stream, &BTreeSet::new(), Format::Docker))
    }

    /// Everything is sent again where leaving out what it listed was a mistake.
    fn to_containerd(&self, ctr: &Ctr) -> Result<(), ExportError> {
        let known = ctr.content()?;
        let blobs = self.image.bundle.packages.iter().flat_map(|package| &package.layers);
        let left_out = blobs.map(|layer| layer.digest.clone()).filter(|digest| known.contains(digest));
        let left_out: BTreeSet<Digest> = left_out.collect();
        let import = |left_out: &BTreeSet<Digest>| {
            feed("containerd", ctr.import()?, |stream| self.write(stream, left_out, Format::Oci))
        };
        match import(&left_out) {
            Err(ExportError::RefusedByEngine { .. }) if !left_out.is_empty() => import(&BTreeSet::new()),
            result => result,
        }
    }
}

/// Sends an engine what `write` writes.
fn post(
    engine: &'static str,
    api: &EngineApi,
    cancel: &CancellationToken,
    write: impl FnOnce(Box<dyn Write + Send>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let (written, answer) = api.post("/images/load?quiet=1", cancel, write).map_err(absent(engine))?;
    accepted(engine, &answer)?;
    written
}

/// The program that takes an archive where podman has no socket.
fn podman() -> Result<Child, ExportError> {
    match is_mapped() {
        true => Err(ExportError::EngineAbsent {
            engine: "podman",
            source: io::Error::other("an ordinary user's podman is reached by its socket only"),
        }),
        false => spawn("podman", Command::new("podman").args(["load", "-q"])),
    }
}

/// Writes an archive into a program. What the program says counts for more than a broken pipe.
fn feed(
    engine: &'static str,
    mut child: Child,
    write: impl FnOnce(Box<dyn Write + Send>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let stdin = child.stdin.take().expect("it was asked for");
    let mut stderr = child.stderr.take().expect("it was asked for");
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        // What cannot be read is not told.
        _ = Read::by_ref(&mut stderr).take(64 << 10).read_to_end(&mut said);
        _ = io::copy(&mut stderr, &mut io::sink());
        said
    });
    let written = write(Box::new(stdin));
    let status = child.wait().map_err(absent(engine))?;
    let said = said.join().unwrap_or_default();
    match status.success() {
        true => written,
        false => {
            let message = String::from_utf8_lossy(&said).trim().to_owned();
            Err(ExportError::RefusedByEngine { engine, message })
        }
    }
}

/// What an archive begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Docker,
    Oci,
}

/// How many of the layers, from the lowest on, docker has upon each other. None where its store is containerd's, which wants
/// all that a manifest names.
fn known_layers(api: &EngineApi, diff_ids: &[DiffId]) -> io::Result<usize> {
    let info = json(&api.get("/info")?);
    if info["DriverStatus"].to_string().contains("io.containerd.snapshotter") {
        return Ok(0);
    }
    let listed = json(&api.get("/images/json?all=1")?);
    let mut known = 0;
    for image in listed.as_array().into_iter().flatten() {
        let Some(id) = image["Id"].as_str().filter(|id| id.parse::<Digest>().is_ok()) else { continue };
        let image = json(&api.get(&format!("/images/{id}/json"))?);
        let layers = image["RootFS"]["Layers"].as_array().into_iter().flatten();
        let common = layers.zip(diff_ids).take_while(|(theirs, ours)| theirs.as_str() == Some(ours.digest().as_str()));
        known = known.max(common.count());
    }
    Ok(known)
}

/// What cannot be read says nothing: then everything is sent.
fn json(answer: &Answer) -> Value {
    let read = serde_json::from_slice(&answer.body).ok();
    read.filter(|_| answer.status == 200).unwrap_or(Value::Null)
}

/// docker says with status 200 that it takes an image, and in the lines that follow whether it did.
fn accepted(engine: &'static str, answer: &Answer) -> Result<(), ExportError> {
    let refused = |message: &str| Err(ExportError::RefusedByEngine { engine, message: message.to_owned() });
    let lines = serde_json::Deserializer::from_slice(&answer.body).into_iter::<Value>().map_while(Result::ok);
    for line in lines {
        let words = ["error", "message", "cause"].iter().find_map(|key| line[key].as_str());
        if let Some(words) = words.filter(|_| answer.status != 200 || line["error"].is_string()) {
            return refused(words);
        }
    }
    match answer.status {
        200 => Ok(()),
        status => refused(&format!("status {status}")),
    }
}

/// containerd's own client.
struct Ctr {
    address: Option<PathBuf>,
    namespace: String,
}

impl Ctr {
    fn command(&self) -> Command {
        let mut command = Command::new("ctr");
        if let Some(address) = &self.address {
            command.arg("--address").arg(address);
        }
        command.args(["--namespace", &self.namespace]);
        command
    }

    fn import(&self) -> Result<Child, ExportError> {
        spawn("containerd", self.command().args(["images", "import", "-"]))
    }

    /// The blobs that containerd has.
    fn content(&self) -> Result<BTreeSet<Digest>, ExportError> {
        let mut command = self.command();
        command.args(["content", "ls", "-q"]).stdin(Stdio::null());
        let listed = command.output().map_err(absent("containerd"))?;
        match listed.status.success() {
            true => Ok(String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.parse().ok()).collect()),
            false => {
                let message = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
                Err(ExportError::RefusedByEngine { engine: "containerd", message })
            }
        }
    }
}

fn spawn(engine: &'static str, command: &mut Command) -> Result<Child, ExportError> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    piped.spawn().map_err(absent(engine))
}

/// A program or a socket that is not there, or where nobody listens, is an engine that is not there.
fn absent(engine: &'static str) -> impl FnOnce(io::Error) -> ExportError {
    move |source| ExportError::EngineAbsent { engine, source }
}

/// Whether this process is root of a user namespace only.
fn is_mapped() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_says_decides() {
        let said = |status, body: &str| {
            let answer = Answer { status, body: body.as_bytes().to_vec() };
            accepted("docker", &answer).err().map(|error| error.to_string())
        };
        assert_eq!(said(200, ""), None);
        assert_eq!(said(200, "{\"stream\":\"Loaded image: app:1\\n\"}\n"), None);
        let told = "{\"stream\":\"x\"}{\"errorDetail\":{\"message\":\"no\"},\"error\":\"no space\"}";
        assert_eq!(said(200, told).as_deref(), Some("docker refused the image: no space"));
        assert_eq!(said(500, "{\"message\":\"broken\"}").as_deref(), Some("docker refused the image: broken"));
        assert_eq!(said(404, "page").as_deref(), Some("docker refused the image: status 404"));
    }
}
