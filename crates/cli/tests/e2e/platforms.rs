//! Images for several platforms, and programs that this machine cannot run by itself.

use crate::fixture::{Forge, Step, state};
use std::fs;

/// A program that prints its architecture and ends, as an ELF file (System V ABI, chapter 4) with one segment.
fn program(machine: u16, code: &[u8], text: &str) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const BASE: u64 = 0x40_0000;
    let size = HEADERS + code.len() as u64 + text.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(2_u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    for address in [BASE + HEADERS, 64, 0] {
        elf.extend(address.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    elf.extend(5_u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf.extend(text.as_bytes());
    elf
}

fn arm64() -> Vec<u8> {
    let text = "arm64 speaks\n";
    // write(1, text, length); exit(0)
    let length = 0xd280_0002 | (u32::try_from(text.len()).unwrap() << 5);
    let code = [0xd280_0020, 0x1000_00e1, length, 0xd280_0808, 0xd400_0001, 0xd280_0000, 0xd280_0ba8, 0xd400_0001_u32];
    program(183, &code.map(u32::to_le_bytes).concat(), text)
}

fn amd64() -> Vec<u8> {
    let text = "amd64 speaks\n";
    let mut code = b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35\x10\0\0\0\xba".to_vec();
    code.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    code.extend(b"\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05");
    program(62, &code, text)
}

/// A context with programs for both platforms.
fn programs(forge: &Forge, dockerfile: &str) -> String {
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    fs::write(format!("{context}/program-amd64"), amd64()).unwrap();
    fs::write(format!("{context}/program-arm64"), arm64()).unwrap();
    fs::write(format!("{context}/program-other"), program(0xfeed, &[0; 4], "")).unwrap();
    context
}

#[test]
fn privileged_what_the_build_platform_makes_needs_no_emulator() {
    let Some(forge) = Forge::privileged("what_the_build_platform_makes_needs_no_emulator") else { return };
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS build\nARG TARGETARCH\nRUN echo made for $TARGETARCH > /made\n\
        FROM scratch\nARG TARGETARCH\nCOPY --from=build /made /made-$TARGETARCH\n";
    let context = forge.context("context", &[("Dockerfile", dockerfile)]);
    let layout = forge.path("layout");
    let output = format!("type=oci,dest={},tar=false", layout.display());
    forge.build(&["--platform", "linux/amd64,linux/sw64,linux/arm/v6", "-o", &output, &context]);
    let read = |digest: &str| -> serde_json::Value {
        let path = layout.join("blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let document: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let index = read(document["manifests"][0]["digest"].as_str().unwrap());
    let platforms = index["manifests"].as_array().unwrap().iter().map(|entry| {
        let manifest = read(entry["digest"].as_str().unwrap());
        let config = read(manifest["config"]["digest"].as_str().unwrap());
        let part = |key: &str| entry["platform"][key].as_str().unwrap_or_default().to_owned();
        assert_eq!(config["architecture"], entry["platform"]["architecture"]);
        format!("{}/{}/{}", part("os"), part("architecture"), part("variant"))
    });
    assert_eq!(platforms.collect::<Vec<_>>(), ["linux/amd64/", "linux/sw64/", "linux/arm/v6"]);
}

#[test]
fn privileged_a_program_without_emulator_is_told() {
    let Some(forge) = Forge::privileged("a_program_without_emulator_is_told") else { return };
    let dockerfile = "FROM scratch\nCOPY --chmod=755 program-other /program\nRUN [\"/program\"]\n";
    let context = programs(&forge, dockerfile);
    let foreign = forge.fails(1, &["build", "--platform", "linux/sw64", &context]).stderr;
    assert!(foreign.contains("Exec format error"), "{foreign}");
    assert!(foreign.contains("programs for linux/sw64 need an emulator: none is registered"), "{foreign}");
    assert!(foreign.contains("qemu-user-static"), "{foreign}");
    let own = forge.fails(1, &["build", &context]).stderr;
    assert!(own.contains("it is no program for linux/"), "{own}");
}

#[test]
fn privileged_programs_of_other_platforms_run_under_an_emulator() {
    let test = "programs_of_other_platforms_run_under_an_emulator";
    let Some(forge) = Forge::privileged(test) else { return };
    let entry = fs::read_to_string("/proc/sys/fs/binfmt_misc/qemu-aarch64").unwrap_or_default();
    if !cfg!(target_arch = "x86_64") || !entry.starts_with("enabled") || !entry.contains("F\n") {
        println!("SKIPPED (needs an x86-64 machine with QEMU registered for aarch64 with flag F): {test}");
        return;
    }
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY --chmod=755 program-${TARGETARCH} /program\nRUN [\"/program\"]\nENTRYPOINT [\"/program\"]\n";
    let context = programs(&forge, dockerfile);
    let words = ["build", "--progress", "plain", "--platform", "linux/amd64,linux/arm64", "-t", "both", &context];
    let built = forge.ok(&words);
    for platform in ["amd64", "arm64"] {
        assert!(built.stderr.contains(&format!("{platform} speaks")), "{}", built.stderr);
        let ran = forge.ok(&["run", "--rm", "--platform", &format!("linux/{platform}"), "both"]);
        assert_eq!(ran.stdout, format!("{platform} speaks\n"));
    }
    let again = forge.ok(&words).steps();
    assert_eq!(state(&again, "linux/arm64 2/2] RUN"), Step::Cached);
}

#[test]
fn privileged_one_platform_may_be_an_index() {
    let Some(forge) = Forge::privileged("one_platform_may_be_an_index") else { return };
    let context = forge.context("context", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    for (value, kind) in [("1", "image.index"), ("0", "image.manifest")] {
        let layout = forge.path(value);
        let output = format!("type=oci,dest={},tar=false", layout.display());
        let argument = format!("BUILDKIT_MULTI_PLATFORM={value}");
        forge.build(&["--build-arg", &argument, "-t", "alone", "-o", &output, "-o", "type=image", &context]);
        let index = fs::read_to_string(layout.join("index.json")).unwrap();
        let document: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert!(document["manifests"][0]["mediaType"].as_str().unwrap().contains(kind), "{index}");
        forge.ok(&["inspect", "alone"]);
    }
}
