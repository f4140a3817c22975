use super::{alone, image, name, new_store, put_image, put_layer};
use crate::{Image, Store, StoreError, Target};
use forge_image::{Descriptor, Digest, ImageId, MediaType};

/// Finds an image ID that begins with given digits by trying texts.
fn put_image_with_prefix(store: &Store, prefix: &str) -> ImageId {
    let lease = store.lease("test").unwrap();
    let text = (0..).map(|n: u64| n.to_string()).find(|text| image(text, &[]).0.id.digest().hex().starts_with(prefix));
    put_image(store, &lease, &text.unwrap(), &[])
}

fn found(store: &Store, text: &str) -> String {
    match store.images().resolve(text) {
        Ok(found) => {
            let name = found.name.map_or("-".to_owned(), |name| name.familiar());
            let images: Vec<_> = found.target.images.iter().map(|id| id.digest().short()[..4].to_owned()).collect();
            format!("{name} {}", images.join(","))
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
            format!("{error}{source}").split(" is made of").next().unwrap().to_owned()
        }
    }
}

#[test]
fn texts_lead_to_images_as_docker_has_it() {
    let (_folder, store) = new_store();
    let (a, b) = (put_image_with_prefix(&store, "ab1"), put_image_with_prefix(&store, "ab2"));
    let c = put_image_with_prefix(&store, "cafe");
    let lease = store.lease("test").unwrap();
    let index = store.blobs().write(b"index", &lease).unwrap();
    let index = Descriptor::new(MediaType::OciIndex, index, 5);
    let manifest = store.blobs().write(b"manifest", &lease).unwrap();
    let manifest = Descriptor::new(MediaType::OciManifest, manifest, 8);
    let (mut with_manifest, config) = image("m", &[]);
    with_manifest.manifest = Some(manifest.clone());
    store.images().put(&with_manifest, &config, &lease).unwrap();
    let m = with_manifest.id;

    let images = store.images();
    images.tag(&name("app:1.0"), &alone(&a)).unwrap();
    images.tag(&name("app"), &Target { index: Some(index.clone()), images: vec![a.clone(), m.clone()] }).unwrap();
    images.tag(&name("r.io:5/x/y:t"), &alone(&b)).unwrap();
    let long = a.digest().hex()[..6].to_owned();
    // A name of hexadecimal digits wins over an image ID that begins with them.
    images.tag(&name("cafe"), &alone(&b)).unwrap();
    let pinned = Digest::sha256(b"elsewhere");
    images.pin_digest(&name(&format!("r.io:5/x/y@{pinned}")), &alone(&b)).unwrap();

    let (a4, b4, c4, m4) = (&a.digest().hex()[..4], &b.digest().hex()[..4], "cafe", &m.digest().hex()[..4]);
    let check = |text: &str, expect: &str| assert_eq!(found(&store, text), expect, "{text}");
    check("app", &format!("app:latest {a4},{m4}"));
    check("docker.io/library/app:latest", &format!("app:latest {a4},{m4}"));
    check("app:1.0", &format!("app:1.0 {a4}"));
    check("r.io:5/x/y:t", &format!("r.io:5/x/y:t {b4}"));
    check("r.io:5/x/y", "no such image: r.io:5/x/y");
    check("cafe", &format!("cafe:latest {b4}"));
    check(&c.digest().hex()[..5], &format!("- {c4}"));
    check(&long, &format!("- {a4}"));
    check(&format!("sha256:{long}"), &format!("- {a4}"));
    check(a.digest().hex(), &format!("- {a4}"));
    check(a.digest().as_str(), &format!("- {a4}"));
    check("ab1", "no such image: ab1"); // too short for an id
    check(&format!("sha256:{}", "0".repeat(64)), &format!("no such image: sha256:{}", "0".repeat(64)));
    check(index.digest.as_str(), &format!("- {a4},{m4}"));
    check(manifest.digest.as_str(), &format!("- {m4}"));
    check(&format!("app@{}", index.digest), &format!("app@{} {a4},{m4}", index.digest));
    check(&format!("app:other@{}", index.digest), &format!("app@{} {a4},{m4}", index.digest));
    check(&format!("app@{}", manifest.digest), &format!("app@{} {m4}", manifest.digest));
    check(&format!("other@{}", manifest.digest), &format!("no such image: other@{}", manifest.digest));
    check(&format!("r.io:5/x/y@{pinned}"), &format!("r.io:5/x/y@{pinned} {b4}"));
    check("App", "invalid image name: invalid reference format: \"App\": repository name must be lowercase");
    check("nothing", "no such image: nothing");
    check("", "invalid image name: invalid reference format: \"\": a name");
}

#[test]
fn an_ambiguous_prefix_is_an_error() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    // 400 ids among 65,536 prefixes of four digits: two begin alike, for certain with these texts.
    let ids: Vec<ImageId> = (0..400).map(|n| put_image(&store, &lease, &n.to_string(), &[])).collect();
    let mut prefixes: Vec<_> = ids.iter().map(|id| &id.digest().hex()[..4]).collect();
    prefixes.sort_unstable();
    let twice = prefixes.windows(2).find(|pair| pair[0] == pair[1]).unwrap()[0];
    let error = store.images().resolve(twice).unwrap_err();
    assert!(matches!(&error, StoreError::AmbiguousId { matches, .. } if matches.len() >= 2), "{error}");
    assert_eq!(error.kind(), forge_image::ErrorKind::UserInput);
}

#[test]
fn putting_again_keeps_what_is_known() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let (first, _) = put_layer(&store, &lease, "first", None);
    let (second, _) = put_layer(&store, &lease, "second", None);
    let (plain, config) = image("x", std::slice::from_ref(&first));
    let images = store.images();
    images.put(&plain, &config, &lease).unwrap();
    let manifest = Descriptor::new(MediaType::OciManifest, store.blobs().write(b"{}", &lease).unwrap(), 2);
    let pulled = Image { manifest: Some(manifest), layers: vec![second], ..plain.clone() };
    images.put(&pulled, &config, &lease).unwrap();
    assert_eq!(images.get(&plain.id).unwrap().unwrap(), pulled);
    images.put(&plain, &config, &lease).unwrap();
    assert_eq!(images.get(&plain.id).unwrap().unwrap(), pulled);
    assert_eq!(images.config_bytes(&plain.id).unwrap(), config);
    assert_eq!(images.config(&plain.id).unwrap().author.as_deref(), Some("x"));
}

#[test]
fn an_image_needs_all_its_parts() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let (whole, config) = image("x", &[]);
    let put = |image: &Image| store.images().put(image, &config, &lease).unwrap_err();
    let layers = vec![crate::LayerId::random()];
    assert!(matches!(put(&Image { layers, ..whole.clone() }), StoreError::LayerNotFound { .. }));
    let manifest = Some(Descriptor::of(MediaType::OciManifest, b"never stored"));
    assert!(matches!(put(&Image { manifest, ..whole.clone() }), StoreError::BlobNotFound { .. }));
    let id = ImageId::new(Digest::sha256(b"other"));
    assert!(matches!(put(&Image { id, ..whole.clone() }), StoreError::ConfigMismatch { .. }));
    assert!(store.images().list().unwrap().is_empty());
    let tag = store.images().tag(&name("x"), &alone(&whole.id)).unwrap_err();
    assert!(matches!(tag, StoreError::ImageNotFound { .. }));
    let digest = name(&format!("x@{}", whole.id));
    assert!(matches!(store.images().tag(&digest, &alone(&whole.id)), Err(StoreError::NotATag { .. })));
    assert!(matches!(store.images().pin_digest(&name("x"), &alone(&whole.id)), Err(StoreError::NoDigest { .. })));
}

#[test]
fn names_come_and_go() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let images = store.images();
    let (a, b) = (put_image(&store, &lease, "a", &[]), put_image(&store, &lease, "b", &[]));
    let c = put_image(&store, &lease, "c", &[]);
    drop(lease);
    assert_eq!(images.tag(&name("x"), &alone(&a)).unwrap(), None);
    assert_eq!(images.tag(&name("x"), &alone(&b)).unwrap(), Some(alone(&a)));
    let both = Target { index: None, images: vec![b.clone(), a.clone()] };
    assert_eq!(images.tag(&name("y"), &both).unwrap(), None);
    assert_eq!(images.tag(&name("y"), &both).unwrap(), Some(both.clone()));
    let pin = name(&format!("x@{}", Digest::sha256(b"m")));
    images.pin_digest(&pin, &alone(&b)).unwrap();
    assert_eq!(images.names_of(&b).unwrap(), [name("x"), name("y")]);
    assert_eq!(images.repo_digests(&b).unwrap(), std::slice::from_ref(&pin));
    let listed = |expect: &[(Option<&str>, Target)]| {
        let names = images.list().unwrap().into_iter().map(|(name, target)| (name.map(|n| n.familiar()), target));
        let expect = expect.iter().map(|(name, target)| (name.map(str::to_owned), target.clone()));
        assert_eq!(names.collect::<Vec<_>>(), expect.collect::<Vec<_>>());
    };
    listed(&[(Some("x:latest"), alone(&b)), (Some("y:latest"), both.clone()), (None, alone(&c))]);

    assert!(!images.delete_unnamed(&a).unwrap(), "y names it");
    assert!(images.untag(&name("x")).unwrap());
    assert!(!images.untag(&name("x")).unwrap());
    assert!(images.untag(&name("y")).unwrap());
    assert!(images.delete_unnamed(&a).unwrap());
    assert!(!images.delete_unnamed(&a).unwrap(), "it is gone");
    listed(&[(Some(&pin.familiar()), alone(&b)), (None, alone(&c))]);
    assert!(!images.delete_unnamed(&b).unwrap(), "a registry knows it");
    assert!(images.untag(&pin).unwrap());
    assert!(images.delete_unnamed(&b).unwrap());
    listed(&[(None, alone(&c))]);
    assert_eq!(images.target(&pin).unwrap(), None);
}

/// What `tag` acknowledged is marked as synced, and nothing that was written after the sync began.
#[test]
fn tagging_makes_durable_what_it_names() {
    let (_folder, store) = new_store();
    let lease = store.lease("test").unwrap();
    let (layer, _) = put_layer(&store, &lease, "x", None);
    let id = put_image(&store, &lease, "x", &[layer]);
    let pending = || {
        let sql = "SELECT (SELECT count(*) FROM layers WHERE boot_id IS NOT NULL),
                          (SELECT count(*) FROM blobs WHERE boot_id IS NOT NULL), (SELECT count FROM syncs)";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        store.opened.database().read(|connection| Ok(connection.query_row(sql, [], row)?)).unwrap()
    };
    assert_eq!(pending(), (1, 1, 0));
    store.images().tag(&name("x"), &alone(&id)).unwrap();
    assert_eq!(pending(), (0, 0, 1));
    put_layer(&store, &lease, "y", None);
    // Nothing that this name needs waits for the disk.
    store.images().tag(&name("z"), &alone(&id)).unwrap();
    store.images().tag(&name("x"), &alone(&id)).unwrap();
    assert_eq!(pending(), (1, 0, 1));
    store.sync().unwrap();
    assert_eq!(pending(), (0, 0, 2));
}

/// F18: an image is stored first and named last. Fails when `DELETE_UNUSED` does not ask for leases.
#[test]
fn f18_an_image_that_is_about_to_be_named_stays() {
    let (_folder, store) = new_store();
    let lease = store.lease("build").unwrap();
    let (layer, _) = put_layer(&store, &lease, "x", None);
    let id = put_image(&store, &lease, "x", &[layer]);
    assert!(!store.images().delete_unnamed(&id).unwrap());
    store.images().tag(&name("x"), &alone(&id)).unwrap();
    drop(lease);
    assert!(!store.images().delete_unnamed(&id).unwrap(), "it has a name by now");
    let other = store.lease("another build").unwrap();
    put_image(&store, &other, "x", &store.images().get(&id).unwrap().unwrap().layers);
    assert!(store.images().untag(&name("x")).unwrap());
    assert!(!store.images().delete_unnamed(&id).unwrap(), "the other build is about to name it");
    store.images().tag(&name("y"), &alone(&id)).unwrap();
    store.images().untag(&name("y")).unwrap();
    drop(other);
    assert!(store.images().delete_unnamed(&id).unwrap());
    assert!(!store.images().delete_unnamed(&id).unwrap());
    assert_eq!(store.images().get(&id).unwrap(), None);
}
