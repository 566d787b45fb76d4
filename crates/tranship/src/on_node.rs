//! The part that names of things on nodes have in common: `[NODE//]NAME`.

use tranship_core::NodeAddress;

/// The node and the rest. `what` the rest is and an `example` of it are for the error.
pub fn split<'a>(text: &'a str, what: &str, example: &str) -> Result<(NodeAddress, &'a str), String> {
    // The slashes of a scheme are not those between node and name.
    let after_scheme = text.find("://").map_or(0, |at| at + 3);
    let rest = text.get(after_scheme..).unwrap_or_default();
    let (node, name) = match rest.rfind("//") {
        Some(at) => (
            text.get(..after_scheme + at).unwrap_or_default(),
            rest.get(at + 2..).unwrap_or_default(),
        ),
        None if after_scheme > 0 => {
            return Err(format!(
                "a {what} is written NODE//NAME, as in ssh://root@host//{example}"
            ));
        }
        None => ("local", rest),
    };
    let node = if node.is_empty() { "local" } else { node };
    Ok((NodeAddress::parse(node).map_err(|e| e.to_string())?, name))
}

/// What stands before a name on this node: nothing for this machine.
pub fn prefix(node: &NodeAddress) -> String {
    match node {
        NodeAddress::Local => String::new(),
        other => format!("{other}//"),
    }
}
