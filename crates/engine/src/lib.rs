//! The composition root: the one door to everything that forge can do.
//!
//! Plain requests go in, events and plain results come out. The engine puts store, registry client, front end,
//! solver, worker and exporters together; it prints nothing, reads no environment and never ends the process.
//!
//! Reading order: [`Engine`]; [`EngineOptions`], [`BuildRequest`], [`RunRequest`]; [`BuildOutcome`];
//! [`EngineError`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod absent;
mod attest;
mod build;
mod call;
mod compare;
mod container;
mod context;
mod context_modes;
mod context_report;
mod definition;
mod destination;
mod devices;
mod dockerfile;
mod early_push;
mod elsewhere;
mod emulation;
mod engine;
mod entitlements;
mod error;
mod excerpt;
mod expected;
mod export;
mod failed_steps;
mod flat;
mod followed;
mod full_disk;
mod garbage;
mod hand_archive;
mod handed;
mod images;
mod imagetools;
mod job;
mod job_container;
mod key_agent;
mod layouts;
mod leaks;
mod limits;
mod missing;
mod outcome;
mod output;
mod own_options;
mod plan;
mod plausible;
mod ports;
mod private_key;
mod provided;
mod prune;
mod remote;
mod request;
mod running;
mod sandbox;
mod session;
mod shared_cache;
mod source_guard;
mod source_policy;
mod steps;
mod tokens;
mod told;
mod usage;
mod verify;

pub use attest::{
    Attest, DOCKERFILE_VERSION, GivenAttestation, GivenKind, Invocation, ProvenanceMode, ProvenanceRequest,
    RequestOrigin, SbomRequest, SlsaVersion,
};
pub use call::{
    Answer, Call, CallOutcome, CheckError, CheckReport, Finding, Outline, OutlineArg, OutlineCache, OutlineRequirement,
    Span, Target,
};
pub use compare::{Aspect, Change, FileChange, LayerRow, Reproduction};
pub use container::RunningContainer;
pub use context_modes::ContextModes;
pub use context_report::{ContextItem, ContextReport};
pub use definition::DefinitionFormat;
pub use destination::{End, OpenedDestination, open as open_destination};
pub use elsewhere::Handover;
pub use engine::Engine;
pub use entitlements::Allowed;
pub use flat::LayerEffect;
pub use garbage::{DiskSpace, GcBounds, GcOptions, GcPolicy};
pub use hand_archive::{hand_archive, unpack_layout};
pub use handed::{AgentSource, SecretSource};
pub use imagetools::{ComposeOutcome, ComposeRequest, ComposeSource, RemoteImage};

pub use devices::{Device, DeviceRule};
pub use error::{EngineError, SourcePlace};
pub use excerpt::excerpt;
pub use expected::ExpectedContainer;
pub use failed_steps::FailedOp;
pub use forge_cache::{Facts, Filter, FilterError, Policy, Reason as PruneReason, Space};
pub use forge_executor::{AppArmor, CpuQuota, ExitStatus, Footing, NamespaceIds, Resources, SwapLimit, stands_as_root};
pub use forge_exporter::{
    Annotation, AnnotationScope, Attestation, AttestationForm, ExistingBlobs, FolderMode, LoadLimits, Nondistributable,
    PlatformFolders, Recipient, StatementFile, Subject,
};
pub use forge_frontend::{TriggerRight, other_front_end};
pub use forge_llb::{ExtraHost, SecretEnv, SecurityMode, Ulimit};
pub use forge_solver::FailedPart;
pub use forge_solver::{Explain, OnFailure};
pub use forge_store::{
    BlobFault, Finding as StoreFinding, LayerFault, Repair, TreeFault, UnpackLimits, Verification, VerifyDepth,
};
pub use forge_worker::{BuildProcess, ProcessRequest, ProcessStreams, ReadObjects, Resolver, SourceFacts};
pub use job::{
    AttestationChain, Job, JobDockerfile, JobImage, JobResult, JobSource, MergedTree, NamedDefinition,
    SessionDockerfile, TreeEntry, TreeKind,
};
pub use job_container::JobContainer;
pub use layouts::{FolderCache, layout_digest};
pub use leaks::leaks;
pub use limits::Limits;
pub use outcome::{
    BuildOutcome, EngineInfo, HistoryRow, ImageDetails, ImageSummary, Loaded, PruneReport, PruneRequest, PullOutcome,
    PushOutcome, Removal, RunOutcome, StepCounts, UsageReport, UsageRow,
};
pub use output::{
    Destination, DigestNames, Epoch, FilesOutput, ImageOutput, Keep, LayerCompression, MediaTypes, Metadata, Output,
    OutputStream, Push, Times, Transport,
};
pub use own_options::OwnOptions;
pub use plan::{BuildPlan, ChangeReport, PLAN_OUTPUT, PlannedStep, PlatformPlan, Reason, ReportContext, StepFate};
pub use ports::{Port, Protocol};
pub use remote::RemoteContext;
pub use request::SyscallFilter;
pub use request::{
    ArchiveFormat, ArchiveReader, Bind, BuildContext, BuildRequest, ContextStream, DockerfileSource, EngineOptions,
    IntakeLimits, Ipc, Isolation, KeyPair, NamedContext, Network, Proxy, PullPolicy, RegistryHost, Rights, RunRequest,
    RunStreams, TmpfsMount,
};
pub use shared_cache::{CacheBundle, CacheExport, CacheImport, CacheMode, CachePlace, ClientFolder, SharedCaches};
pub use source_guard::SourceGuard;
pub use source_policy::{SourcePolicy, evaluate};
pub use tokens::TokenFetcher;
pub use verify::VerifyReport;

/// Runs the set-up of a container, and does not return, if this process was started for that. To be called first
/// of all in the `main` of every program that uses [`Engine`]: the executor starts that very program again.
pub fn init_if_requested() {
    // What stays is found by the next one that opens the store.
    forge_executor::init_if_requested(|folder| drop(forge_store::remove_folder(folder)));
}

/// Finds out as what this process can make containers. Whoever may not do so as they are becomes root of a namespace of their
/// own, for the rest of this process. To be called before any thread is started, and before [`Engine::open`].
///
/// # Errors
/// The kernel forbids it, or the user's subordinate ids cannot be used.
pub fn find_footing() -> Result<Footing, EngineError> {
    forge_executor::find_footing().map_err(|error| {
        let hint = match error {
            forge_executor::ExecutorError::NamespaceRefused { .. } => {
                "ask an administrator to allow it, or run forge as root"
            }
            _ => "an administrator can mend the file; the manual page is subuid(5)",
        };
        EngineError::from(error).with_hint(hint)
    })
}
