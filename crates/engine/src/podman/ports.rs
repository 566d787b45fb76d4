//! Published ports, one by one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::json::{at, items, text};

/// More mappings than this are no container's: it bounds what a document can ask for.
const MOST: usize = 1 << 18;

/// The mappings of the wishes, each for a single port: Podman joins neighbours to ranges, of which some ports may be published elsewhere
/// and others not. `publish` says which, old → new.
pub(super) fn single(documents: &Value, publish: Option<&BTreeMap<u16, u16>>) -> Vec<Value> {
    let mappings = items(documents, &["Wishes", "portmappings"]).iter();
    mappings
        .flat_map(|mapping| {
            let port = |key: &str| u16::try_from(at(mapping, &[key]).as_u64().unwrap_or_default()).ok();
            let [inside, outside] = ["container_port", "host_port"].map(port);
            let count = port("range").unwrap_or_default().max(1);
            let [address, protocol] = ["host_ip", "protocol"].map(|key| text(mapping, &[key]));
            (0..count).filter_map(move |step| {
                let inside = inside?.checked_add(step)?;
                // None is chosen: any will do, for each of them.
                let outside = match outside? {
                    0 => 0,
                    first => first.checked_add(step)?,
                };
                let outside = publish
                    .and_then(|publish| publish.get(&outside))
                    .unwrap_or(&outside);
                Some(json!({
                    "host_ip": address,
                    "container_port": inside,
                    "host_port": outside,
                    "range": 1,
                    "protocol": protocol,
                }))
            })
        })
        .take(MOST)
        .collect()
}
