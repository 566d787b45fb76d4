//! In which order containers that move together start: what others depend on comes first.

use std::collections::BTreeSet;

use tranship_core::ContainerSpec;

/// Label by which Compose says what a service needs: `db:service_started:false,cache:…` (compose-spec, `depends_on`).
const DEPENDS_ON: &str = "com.docker.compose.depends_on";
const SERVICE: &str = "com.docker.compose.service";
const PROJECT: &str = "com.docker.compose.project";

/// Indexes in starting order: by Compose's labels where they say something, else by age, since what was made later may
/// rely on what was there. A circle is broken at the oldest.
pub(crate) fn start_order(specs: &[&ContainerSpec]) -> Vec<usize> {
    let mut by_age: Vec<usize> = (0..specs.len()).collect();
    by_age.sort_by_key(|&index| created(specs.get(index).copied()));
    let mut order: Vec<usize> = Vec::new();
    let mut left: Vec<usize> = by_age;
    while !left.is_empty() {
        let waiting: BTreeSet<usize> = left.iter().copied().collect();
        let ready = left
            .iter()
            .position(|&index| !needs(specs, index).iter().any(|n| waiting.contains(n)))
            .unwrap_or(0);
        order.push(left.remove(ready));
    }
    order
}

fn created(spec: Option<&ContainerSpec>) -> String {
    spec.and_then(|s| s.document.get("Created"))
        .and_then(|c| c.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Which others the container at `index` needs.
fn needs(specs: &[&ContainerSpec], index: usize) -> Vec<usize> {
    let Some(spec) = specs.get(index) else {
        return Vec::new();
    };
    let services: BTreeSet<&str> = spec
        .labels
        .get(DEPENDS_ON)
        .map(|list| {
            list.split(',')
                .filter_map(|part| part.split(':').next())
                .filter(|service| !service.is_empty())
                .collect()
        })
        .unwrap_or_default();
    let of_the_project = |other: &ContainerSpec| other.labels.get(PROJECT) == spec.labels.get(PROJECT);
    specs
        .iter()
        .enumerate()
        .filter(|(at, other)| {
            *at != index
                && of_the_project(other)
                && other
                    .labels
                    .get(SERVICE)
                    .is_some_and(|s| services.contains(s.as_str()))
        })
        .map(|(at, _)| at)
        .collect()
}
