//! What is written so that BuildKit's own reader takes it.

use crate::pb;

/// Takes vertices without a place out of a definition, and out of those that its files come from. The format has no difference
/// between them and those that are not listed, but the value of such an entry is not written, and BuildKit's reader ends the process
/// that meets one.
pub fn without_empty_places(definition: &mut pb::Definition) {
    let Some(source) = &mut definition.source else { return };
    source.locations.retain(|_, places| !places.locations.is_empty());
    let definitions = source.infos.iter_mut().filter_map(|info| info.definition.as_mut());
    definitions.for_each(without_empty_places);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_what_has_a_place_is_listed() {
        let source = |infos| {
            let place = pb::Locations { locations: vec![pb::Location::default()] };
            let locations = BTreeMap::from([("a".to_owned(), place), ("b".to_owned(), pb::Locations::default())]);
            Some(pb::Source { locations: locations.into_iter().collect(), infos })
        };
        let inner = pb::Definition { source: source(Vec::new()), ..pb::Definition::default() };
        let file = pb::SourceInfo { definition: Some(inner), ..pb::SourceInfo::default() };
        let mut definition = pb::Definition { source: source(vec![file]), ..pb::Definition::default() };
        without_empty_places(&mut definition);
        let outer = definition.source.unwrap();
        let inner = outer.infos[0].definition.as_ref().unwrap().source.as_ref().unwrap();
        for source in [&outer, inner] {
            assert_eq!(source.locations.keys().collect::<Vec<_>>(), ["a"]);
        }
    }
}
