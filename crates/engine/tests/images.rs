//! Names come and go: what `images`, `rmi` and `prune` make of what the store holds.
#![forbid(unsafe_code)]

use forge_engine::{Engine, EngineOptions, GcOptions, Policy, Proxy, PruneRequest, Removal};
use forge_image::{ErrorKind, ImageId, Reference};
use forge_store::{Image, Store, Target};
use forge_testkit::ImageBuilder;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;
use tempfile::TempDir;

/// An engine and a store of images without layers.
struct Home {
    engine: Engine,
    store: Store,
    _folder: TempDir,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = EngineOptions {
            root: folder.path().join("store"),
            registries: BTreeMap::new(),
            docker_config: folder.path().join("config.json"),
            offline: true,
            intake: forge_engine::IntakeLimits::default(),
            proxy: Proxy::default(),
            max_parallelism: None,
            device_folders: Vec::new(),
            oci_runtime: None,
            gc: GcOptions::default(),
            user_agent: None,
        };
        let engine = Engine::open(options.clone()).unwrap();
        Self { engine, store: Store::open(&options.root).unwrap(), _folder: folder }
    }

    /// Puts an image with names; `text` tells it from others.
    fn image(&self, text: &str, names: &[&str]) -> ImageId {
        let made = ImageBuilder::new().config(|config| config.author = Some(text.to_owned())).build();
        let image = Image {
            id: ImageId::new(made.config.descriptor.digest.clone()),
            platform: made.platform,
            layers: Vec::new(),
            manifest: None,
            created: None,
            stored: UNIX_EPOCH,
        };
        let lease = self.store.lease("test").unwrap();
        self.store.images().put(&image, &made.config.bytes, &lease).unwrap();
        let target = Target { index: None, images: vec![image.id.clone()] };
        for name in names {
            let name: Reference = name.parse().unwrap();
            match name.digest() {
                Some(_) => self.store.images().pin_digest(&name, &target).unwrap(),
                None => drop(self.store.images().tag(&name, &target).unwrap()),
            }
        }
        image.id
    }

    async fn names(&self) -> Vec<String> {
        let rows = self.engine.images().await.unwrap();
        rows.iter().map(|row| row.name.as_ref().map_or("<none>".to_owned(), Reference::familiar)).collect()
    }

    /// What `rmi` prints, or its error.
    async fn remove(&self, text: &str, force: bool) -> Vec<String> {
        match self.engine.remove_image(text, force).await {
            Ok(removals) => removals.iter().map(line).collect(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::UserInput);
                vec![error.to_string(), error.hint().unwrap_or_default().to_owned()]
            }
        }
    }
}

fn line(removal: &Removal) -> String {
    match removal {
        Removal::Untagged(name) => format!("Untagged: {}", name.familiar()),
        Removal::Deleted(_) => "Deleted".to_owned(),
    }
}

fn pinned(repository: &str) -> String {
    format!("{repository}@sha256:{}", "a".repeat(64))
}

#[tokio::test]
async fn the_last_name_takes_the_image_along() {
    let home = Home::new();
    home.image("x", &["app:1", "app:2"]);
    assert_eq!(home.remove("app:1", false).await, ["Untagged: app:1"]);
    assert_eq!(home.names().await, ["app:2"]);
    assert_eq!(home.remove("app:2", false).await, ["Untagged: app:2", "Deleted"]);
    assert!(home.names().await.is_empty());
    assert_eq!(home.remove("app:2", false).await[0], "no such image: app:2");
    assert!(home.remove("app:2", true).await.is_empty());
    assert!(home.remove("No Name", true).await[0].contains("invalid"), "only what is missing is no error");
}

/// Fails where it is looked for names first and the image removed then: after a few rounds it is not there any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_prune_removes_meanwhile_is_no_error() {
    let home = Home::new();
    let other = home.engine.clone();
    let pruning = tokio::spawn(async move {
        loop {
            other.prune(PruneRequest { policy: Policy::default(), dry_run: false }).await.unwrap();
        }
    });
    for round in 0..200 {
        home.image(&round.to_string(), &["app:1"]);
        let removed = home.remove("app:1", true).await;
        assert_eq!(removed[0], "Untagged: app:1", "round {round}");
    }
    pruning.abort();
}

#[tokio::test]
async fn digests_go_with_the_last_tag_of_their_repository() {
    let home = Home::new();
    home.image("x", &["r.test/a:1", "r.test/a:2", "r.test/b:1", &pinned("r.test/a"), &pinned("r.test/b")]);
    assert_eq!(home.remove("r.test/a:1", false).await, ["Untagged: r.test/a:1"]);
    let a = format!("Untagged: {}", pinned("r.test/a"));
    assert_eq!(home.remove("r.test/a:2", false).await, ["Untagged: r.test/a:2", &a]);
    let b = format!("Untagged: {}", pinned("r.test/b"));
    assert_eq!(home.remove("r.test/b:1", false).await, ["Untagged: r.test/b:1", &b, "Deleted"]);
}

#[tokio::test]
async fn an_image_that_a_registry_knows_by_another_name_stays() {
    let home = Home::new();
    home.image("x", &["app:1", &pinned("r.test/a")]);
    assert_eq!(home.remove("app:1", false).await, ["Untagged: app:1"]);
    assert_eq!(home.names().await, [pinned("r.test/a")]);
    let untagged = format!("Untagged: {}", pinned("r.test/a"));
    assert_eq!(home.remove(&pinned("r.test/a"), false).await, [untagged.as_str(), "Deleted"]);
}

#[tokio::test]
async fn by_id_all_names_go_if_there_is_one_or_force() {
    let home = Home::new();
    let id = home.image("x", &["app:1", "app:2", &pinned("r.test/a")]);
    let short = &id.digest().hex()[..12];
    let refused = home.remove(short, false).await;
    assert_eq!(refused[0], "image is referenced by several names: app:1, app:2");
    assert!(refused[1].contains("--force"), "{refused:?}");
    assert_eq!(home.names().await.len(), 2);
    let digest = format!("Untagged: {}", pinned("r.test/a"));
    assert_eq!(home.remove(short, true).await, ["Untagged: app:1", "Untagged: app:2", &digest, "Deleted"]);
}

#[tokio::test]
async fn a_moved_name_leaves_a_dangling_image_for_prune() {
    let home = Home::new();
    let old = home.image("old", &["app:1"]);
    home.image("new", &["app:1"]);
    assert_eq!(home.names().await, ["<none>", "app:1"]);
    let planned = home.engine.prune(PruneRequest { dry_run: true, ..PruneRequest::default() }).await.unwrap();
    assert_eq!(planned.images, std::slice::from_ref(&old));
    assert_eq!(home.names().await.len(), 2, "a dry run removes nothing");
    assert_eq!(home.engine.prune(PruneRequest::default()).await.unwrap().images, [old]);
    assert_eq!(home.names().await, ["app:1"]);
}

#[tokio::test]
async fn a_push_without_such_a_name_says_what_to_do() {
    let home = Home::new();
    struct Nobody;
    impl forge_session::EventSink for Nobody {
        fn emit(&self, _event: forge_session::Event) {}
    }
    let name = "r.test/none:1".parse().unwrap();
    let error = home.engine.push(&name, std::sync::Arc::new(Nobody), Default::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "An image does not exist locally with the tag: r.test/none");
    assert!(error.hint().is_some_and(|hint| hint.contains("forge tag")));
}
