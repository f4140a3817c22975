//! P16: whatever the bytes are, reading them ends soon, in a graph or an error, and takes no memory to speak of.

mod support;

use forge_buildkit_proto::{decode, definition_bytes, encode};
use support::Random;

/// Reads bytes; what is accepted must be written and read again as the same.
fn read(bytes: &[u8]) -> bool {
    let Ok(decoded) = decode(bytes) else { return false };
    let again = encode(&decoded.graph, &decoded.sources).expect("what came over the wire goes over it");
    let again = definition_bytes(&again);
    let twice = decode(&again).expect("what forge wrote it can read");
    assert_eq!(definition_bytes(&encode(&twice.graph, &twice.sources).unwrap()), again);
    true
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 => bytes.insert(at.min(bytes.len()), random.below(256) as u8),
            4 if at < bytes.len() => _ = bytes.remove(at),
            _ => {
                let end = (at + random.below(40)).min(bytes.len());
                let part = bytes[at.min(end)..end].to_vec();
                bytes.extend(part);
            }
        }
    }
}

#[test]
fn p16_broken_definitions_are_refused_without_harm() {
    let mut accepted = 0;
    for seed in 0..6_000 {
        let mut random = Random::new(seed + 77);
        let mut bytes = definition_bytes(&encode(&support::graph(seed % 500), &[]).unwrap());
        mutate(&mut bytes, &mut random);
        accepted += usize::from(read(&bytes));
    }
    assert!(accepted > 0, "mutations of what is not looked at do no harm");
}

/// Changes single ops and fixes what refers to them, so that mutations reach behind the digests.
/// Seen to fail with the check of actions' indices in `decode/file.rs` taken out.
#[test]
fn p16_broken_ops_are_refused_without_harm() {
    use forge_image::Digest;
    use prost::Message as _;
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..6_000 {
        let mut random = Random::new(seed + 7);
        let mut definition = encode(&support::graph(seed % 500), &[]).unwrap();
        definition.metadata.clear();
        let count = definition.def.len();
        if count < 2 {
            continue;
        }
        let chosen = random.below(count - 1);
        let mut renamed = Vec::new();
        for (position, bytes) in definition.def.iter_mut().enumerate() {
            let old = Digest::sha256(bytes).to_string();
            let mut op = forge_buildkit_proto::pb::Op::decode(bytes.as_slice()).unwrap();
            for input in &mut op.inputs {
                if let Some((_, new)) = renamed.iter().find(|(old, _)| *old == input.digest) {
                    input.digest = String::clone(new);
                }
            }
            *bytes = op.encode_to_vec();
            if position == chosen {
                mutate(bytes, &mut random);
            }
            renamed.push((old, Digest::sha256(bytes).to_string()));
        }
        match read(&definition_bytes(&definition)) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    assert!(accepted > 50 && refused > 500, "{accepted} {refused}");
}

/// A26: a mode of security that nobody knows is no step without confinement, and neither is one that is said twice. The last one
/// counts there, as protobuf has it. Meant to fail with unknown modes read as `Insecure`.
#[test]
fn a26_modes_of_security() {
    use forge_buildkit_proto::pb;
    use forge_image::Digest;
    use forge_llb::{Op, SecurityMode};
    use prost::Message as _;
    let modes = |graph: &forge_llb::Graph| -> Vec<SecurityMode> {
        let mode = |op: &Op| if let Op::Exec(exec) = op { Some(exec.security) } else { None };
        graph.needed().iter().filter_map(|(_, vertex)| mode(&vertex.op)).collect()
    };
    let graph = (0..500).map(support::graph).find(|graph| modes(graph).len() == 1).unwrap();
    let definition = encode(&graph, &[]).unwrap();
    let mut seen = Vec::new();
    for given in [&[0][..], &[1], &[], &[2], &[255], &[-1], &[i32::MIN], &[1, 0], &[0, 1], &[1, 2]] {
        let (mut definition, mut renamed, mut found) = (definition.clone(), Vec::<(String, String)>::new(), false);
        definition.metadata.clear();
        for bytes in &mut definition.def {
            let old = Digest::sha256(bytes).to_string();
            let mut op = pb::Op::decode(bytes.as_slice()).unwrap();
            for input in &mut op.inputs {
                if let Some((_, new)) = renamed.iter().find(|(old, _)| *old == input.digest) {
                    input.digest.clone_from(new);
                }
            }
            let exec = matches!(op.op, Some(pb::op::Op::Exec(_))) && !found;
            if let (true, Some(pb::op::Op::Exec(exec))) = (exec, &mut op.op) {
                exec.security = 0;
                found = true;
            }
            *bytes = op.encode_to_vec();
            if exec {
                // Fields of one number are merged: an op with nothing but a mode changes the mode.
                for mode in given {
                    let more = pb::Op {
                        op: Some(pb::op::Op::Exec(pb::ExecOp { security: *mode, ..Default::default() })),
                        ..Default::default()
                    };
                    bytes.extend(match mode {
                        0 => field(2, &[4 << 3, 0]),
                        _ => more.encode_to_vec(),
                    });
                }
            }
            renamed.push((old, Digest::sha256(bytes).to_string()));
        }
        assert!(found, "the graph has a process");
        seen.push(match decode(&definition_bytes(&definition)) {
            Ok(decoded) if modes(&decoded.graph) == [SecurityMode::Insecure] => "insecure".to_owned(),
            Ok(_) => "sandbox".to_owned(),
            Err(error) => error.to_string().rsplit("security mode").next().unwrap().trim().to_owned(),
        });
    }
    assert_eq!(seen.len(), 10);
    for (index, start) in
        ["sandbox", "insecure", "sandbox", "2", "255", "-1", "-2147483648", "sandbox", "insecure", "2"]
            .iter()
            .enumerate()
    {
        assert!(seen[index].starts_with(start), "{index}: {seen:?}");
    }
}

#[test]
fn p16_noise_is_refused_without_harm() {
    for seed in 0..6_000 {
        let mut random = Random::new(seed);
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.below(256) as u8).collect();
        read(&bytes);
    }
}

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    [bytes, content.to_vec()].concat()
}

#[test]
fn p16_a_few_bytes_do_not_become_gigabytes() {
    let refused = |bytes: &[u8]| decode(bytes).map(|_| ()).unwrap_err().to_string();
    // Each two bytes would be a mount, an op, a location of some hundred bytes.
    let many = |number: u8| [number << 3 | 2, 0].repeat(2_000_000);
    let exec = field(1, &field(2, &many(2)));
    let actions = field(1, &field(4, &many(2)));
    let locations = field(3, &field(1, &field(2, &many(1))));
    for bytes in [many(1), many(2), exec, actions, locations] {
        assert_eq!(refused(&bytes), "the definition has more than 1000000 fields");
    }
    assert_eq!(refused(&vec![0; (32 << 20) + 1]), "the definition has more than 33554432 bytes");
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested = field(3, &field(2, &field(3, &nested)));
    }
    assert!(refused(&nested).contains("levels"));
}

/// Seen to fail without the limit in `decode/spans.rs`: there are 300 MB then.
#[test]
fn p16_a_file_is_not_repeated_for_each_of_its_vertices() {
    use forge_buildkit_proto::SourceFile;
    use forge_llb::*;
    let span = InstructionSpan { file: "f".to_owned(), first_line: 1, last_line: 1000, text: String::new() };
    let vertex = |op, inputs, name: String| {
        let metadata = Metadata { name, span: Some(span.clone()), ..Metadata::default() };
        Vertex { op, inputs, platform: None, metadata }
    };
    let mut graph = Graph::new();
    let sources = (0..300).map(|number| {
        let source = Op::Source(SourceOp::Http(HttpSource::new(format!("https://h/{number}"))));
        graph.add(vertex(source, Vec::new(), number.to_string())).unwrap()
    });
    let inputs = sources.collect();
    let goal = graph.add(vertex(Op::Merge, inputs, "all".to_owned())).unwrap();
    graph.set_goal(Some(goal)).unwrap();
    let line = "x".repeat(1023) + "\n";
    let file = SourceFile {
        name: "f".to_owned(),
        data: line.repeat(1024).into(),
        language: String::new(),
        definition: Vec::new(),
    };
    let decoded = decode(&definition_bytes(&encode(&graph, &[file]).unwrap())).unwrap();
    let spans = decoded.graph.vertices().iter().filter_map(|vertex| vertex.metadata.span.as_ref());
    let texts: Vec<usize> = spans.map(|span| span.text.len()).collect();
    assert_eq!((texts[0], texts.iter().sum::<usize>() <= 32 << 20), (1000 * 1024 - 1, true));
}
