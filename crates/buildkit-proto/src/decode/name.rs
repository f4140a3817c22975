//! What BuildKit calls a vertex that its maker gave no name.

use crate::pb;
use forge_image::Digest;
use forge_llb::{Graph, VertexDigest};
use pb::file_action::Action;

/// Merges are named after their inputs, which may be merges: the length would double with each.
const LONGEST: usize = 1000;

pub fn name(op: &pb::Op, graph: &Graph) -> String {
    let name = match &op.op {
        Some(pb::op::Op::Source(source)) => source.identifier.clone(),
        Some(pb::op::Op::Exec(exec)) => exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(),
        Some(pb::op::Op::File(file)) => file.actions.iter().filter_map(action).collect::<Vec<_>>().join(", "),
        Some(pb::op::Op::Build(_)) => "build".to_owned(),
        Some(pb::op::Op::Merge(_)) => {
            let inputs: Vec<&str> = op.inputs.iter().map(|input| input_name(input, graph)).collect();
            format!("merge ({})", inputs.join(", "))
        }
        Some(pb::op::Op::Diff(diff)) => {
            let side = |index: Option<i64>| match index.and_then(|index| usize::try_from(index).ok()) {
                Some(index) => format!("({})", op.inputs.get(index).map_or("?", |input| input_name(input, graph))),
                None => "scratch".to_owned(),
            };
            let (lower, upper) = (diff.lower.map(|side| side.input), diff.upper.map(|side| side.input));
            format!("diff {} -> {}", side(lower), side(upper))
        }
        None => "unknown operation".to_owned(),
    };
    name.chars().take(LONGEST).collect()
}

/// The name of an input, where it was read before.
fn input_name<'a>(input: &pb::Input, graph: &'a Graph) -> &'a str {
    let digest = input.digest.parse::<Digest>().ok().map(VertexDigest::new);
    digest.and_then(|digest| graph.get(&digest)).map_or("?", |vertex| &vertex.metadata.name)
}

fn action(action: &pb::FileAction) -> Option<String> {
    Some(match action.action.as_ref()? {
        Action::Mkdir(mkdir) => format!("mkdir {}", mkdir.path),
        Action::Mkfile(mkfile) => format!("mkfile {}", mkfile.path),
        Action::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
    })
}
