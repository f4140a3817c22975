//! Archives with several images.

use crate::fixture::{Forge, system};

#[test]
fn privileged_several_images_are_saved_and_loaded_together() {
    let Some(forge) = Forge::privileged("several_images_are_saved_and_loaded_together") else { return };
    for name in ["one", "two"] {
        let dockerfile = format!("FROM busybox\nCOPY file /{name}\n");
        let context = forge.context(name, &[("Dockerfile", &dockerfile), ("file", name)]);
        forge.build(&["-t", &format!("{name}:1"), "-t", &format!("r.test/team/{name}:2"), &context]);
    }
    let id = |forge: &Forge, name: &str| forge.ok(&["inspect", "-f", "{{.Id}}", name]).stdout;
    let nameless = id(&forge, "busybox");
    for format in ["docker", "oci"] {
        let archive = format!("{format}.tar");
        let words =
            ["save", "--format", format, "-o", &archive, "one:1", "r.test/team/one:2", "two:1", nameless.trim()];
        forge.ok(&words);
        let other = Forge::new();
        let path = forge.path(&archive).display().to_string();
        let loaded = other.ok(&["load", "-i", &path]).stdout;
        for name in ["one:1", "r.test/team/one:2", "two:1"] {
            assert!(loaded.contains(&format!("Loaded image: {name}\n")), "{format}: {loaded}");
            assert_eq!(id(&other, name), id(&forge, name), "{format}");
        }
        assert!(loaded.contains("Loaded image ID: "), "{format}: {loaded}");
        other.fails(1, &["inspect", "r.test/team/two:2"]);
        assert_eq!(other.shell("one:1", "cat /one"), "one");
        assert_eq!(other.shell("two:1", "cat /two"), "two");
        let listed = system(&["tar", "-tf", &path]);
        let mut blobs: Vec<&str> = listed.lines().filter(|line| line.starts_with("blobs/sha256/")).collect();
        let all = blobs.len();
        blobs.sort_unstable();
        blobs.dedup();
        assert_eq!(blobs.len(), all, "what images share is there once");
        // Loading the same again is no conflict, and an archive of one moves nothing of the other.
        other.ok(&["load", "-i", &path]);
    }
}
