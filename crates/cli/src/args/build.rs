use super::LimitArgs;
use super::unsupported::{Flag, FlagTable, Shape, Unsupported, flag};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// `forge build`: the flags of `docker buildx build`.
#[derive(clap::Args, Debug, Default)]
pub struct BuildArgs {
    /// Folder with the files of the build; address of a Git repository (URL#REF:FOLDER) or of an archive; - for an
    /// archive or a Dockerfile on standard input
    #[arg(value_name = "PATH|URL|-")]
    pub context: String,
    /// Name of the image (repeatable)
    #[arg(short = 't', long = "tag", value_name = "NAME[:TAG]")]
    pub tags: Vec<String>,
    /// The Dockerfile, its address, or - for standard input; a path within a repository or archive
    /// [default: PATH/Dockerfile]
    #[arg(short = 'f', long, value_name = "PATH|URL|-", allow_hyphen_values = true)]
    pub file: Option<String>,
    /// Value of an ARG; without =VALUE that of the environment (repeatable)
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// The stage to build
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Run every step again
    #[arg(long)]
    pub no_cache: bool,
    /// Run every step of these stages again
    #[arg(long, value_name = "STAGES", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,
    /// Let the other steps end when one fails, as far as they do without it
    #[arg(long)]
    pub keep_going: bool,
    /// Say of every step that runs why the cache did not have it; without it, of those that the last build had found
    #[arg(long)]
    pub explain: bool,
    /// How many steps run at the same time [default: worker.oci.max-parallelism of the configuration, or no bound]
    #[arg(long, value_name = "N")]
    pub max_parallelism: Option<NonZeroUsize>,
    /// Permission bits of context files: disk as they are, or git for those that git keeps, whatever the umask was
    #[arg(long, value_name = "MODE", default_value = "disk", value_parser = ["disk", "git"])]
    pub context_modes: String,
    /// Ask registries for newer base images
    #[arg(long)]
    pub pull: bool,
    /// Platforms of the image, comma-separated or repeated
    #[arg(long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub platforms: Vec<String>,
    /// A further context: NAME=PATH, a Git or web address, docker-image://REF, oci-layout://PATH[:TAG] or
    /// target:STAGE (repeatable)
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub build_contexts: Vec<String>,
    /// Where the result goes: a folder, - for a tar on standard output, or type=image|registry|oci|docker|local|tar|cacheonly,KEY=VALUE
    #[arg(short = 'o', long = "output", value_name = "OUTPUT", allow_hyphen_values = true)]
    pub outputs: Vec<String>,
    /// Send the image to its registry
    #[arg(long)]
    pub push: bool,
    /// Keep the image in the local store (the default), or hand it to docker, podman or containerd
    #[arg(long, value_name = "ENGINE", num_args = 0..=1, require_equals = true, default_missing_value = "forge",
          value_parser = ["forge", "docker", "podman", "containerd", "true", "false"])]
    pub load: Option<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// Write what is known of the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Label of the image (repeatable)
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Annotation of the image: [SCOPE,...:]NAME=VALUE, where a scope is manifest, index, manifest-descriptor or
    /// index-descriptor, with [PLATFORM] behind it for one of several (repeatable)
    #[arg(long = "annotation", value_name = "ANNOTATION")]
    pub annotations: Vec<String>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub network: String,
    /// Line of /etc/hosts for RUN steps (repeatable)
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub add_hosts: Vec<String>,
    /// Progress output: auto, plain, tty, rawjson, quiet or none [env: BUILDKIT_PROGRESS]
    #[arg(long, value_name = "MODE")]
    pub progress: Option<String>,
    /// Print the image ID and nothing else
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// Show warnings in full
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// Secret that steps may ask for: id=ID[,src=FILE|,env=NAME] (repeatable)
    #[arg(long = "secret", value_name = "SECRET")]
    pub secrets: Vec<String>,
    /// SSH agent that steps may ask for: default, or ID[=SOCKET|KEY,...] (repeatable)
    #[arg(long, value_name = "AGENT")]
    pub ssh: Vec<String>,
    /// Cache that other machines share, asked where this one's has nothing: REFERENCE, or type=registry,ref=REFERENCE,
    /// type=local,src=FOLDER, type=s3,…, type=gha,… or type=reapi,addr=grpc://HOST:PORT; with mounts=true, verify-key=FILE (repeatable)
    #[arg(long, value_name = "CACHE")]
    pub cache_from: Vec<String>,
    /// Cache that is told of every step: REFERENCE, type=registry,ref=REFERENCE, type=local,dest=FOLDER, type=inline, type=s3,…,
    /// type=gha,… or type=reapi,addr=grpc://HOST:PORT; with mode=min|max, compression=gzip|zstd|uncompressed, mounts=true, sign-key=FILE and more (repeatable). What it cannot take fails no build
    #[arg(long, value_name = "CACHE")]
    pub cache_to: Vec<String>,
    /// Permission that a step may ask for: network.host, security.insecure, device[=NAME]; what ONBUILD triggers of
    /// base images may use: onbuild.secret, onbuild.ssh, onbuild.network.host, onbuild.security.insecure, onbuild.device
    #[arg(long = "allow", value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Build a definition of BuildKit's format, as buildctl takes it, instead of a Dockerfile; - for standard input
    #[arg(long, value_name = "FILE|-", allow_hyphen_values = true)]
    pub llb: Option<String>,
    /// What to do with the Dockerfile: build, check, outline, targets or subrequests.describe; also METHOD,format=json and check,ignorestatus=true
    #[arg(long, value_name = "METHOD", alias = "print")]
    pub call: Option<String>,
    /// Say what the build checks find, and build nothing (--call=check)
    #[arg(long)]
    pub check: bool,
    /// Say how the image was made, beside it: true, false, min, max, or mode=min|max,version=v1|v0.2,inline-only=true,builder-id=URI
    #[arg(long, value_name = "BOOL|MODE")]
    pub provenance: Option<String>,
    /// Say what software is in the image, beside it: true, false, or generator=IMAGE, which is run as BuildKit's scanners are
    #[arg(long, value_name = "BOOL|generator=IMAGE")]
    pub sbom: Option<String>,
    /// Both in one flag: type=provenance,… or type=sbom,…; with disabled=true not (repeatable)
    #[arg(long = "attest", value_name = "type=TYPE,…")]
    pub attests: Vec<String>,
    /// Rules for sources; only disabled=true so far
    #[arg(long = "policy", value_name = "POLICY", hide = true)]
    pub policies: Vec<String>,
    /// Limit of each step: memory, memory-swap, cpus, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems, pids (repeatable)
    #[arg(long = "resource", value_name = "KEY=VALUE")]
    pub resources: Vec<String>,
    /// Limit of all steps together, with the same keys (repeatable)
    #[arg(long = "total-resource", value_name = "KEY=VALUE")]
    pub total_resources: Vec<String>,
    /// Run steps with an OCI runtime (runc, crun, or a path) instead of forge's own sandbox [env: FORGE_OCI_RUNTIME]
    #[arg(long, value_name = "NAME|PATH")]
    pub oci_runtime: Option<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// docker build removes intermediate containers; there are none
    #[arg(long, hide = true)]
    pub(super) rm: bool,
    #[arg(long, hide = true)]
    pub(super) force_rm: bool,
    #[command(flatten)]
    pub refused: Unsupported<Refused>,
    #[command(flatten)]
    pub ignored: Unsupported<Ignored>,
}

/// Flags of buildx that forge does not have yet. Using one is an error.
#[derive(Debug, Default)]
pub struct Refused;

impl FlagTable for Refused {
    const FLAGS: &'static [Flag] = &[flag("builder", None, Shape::Value)];
}

/// Flags of the builder before BuildKit that docker takes and ignores. Using one is worth a note.
#[derive(Debug, Default)]
pub struct Ignored;

impl FlagTable for Ignored {
    const FLAGS: &'static [Flag] = &[
        flag("compress", None, Shape::Switch),
        flag("isolation", None, Shape::Value),
        flag("security-opt", None, Shape::Value),
        flag("squash", None, Shape::Switch),
    ];
}
