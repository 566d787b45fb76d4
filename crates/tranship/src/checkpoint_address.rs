//! How a container and its checkpoints are named on the command line: `[NODE//]CONTAINER[@NAME]`.

use std::fmt;
use std::str::FromStr;

use tranship_core::NodeAddress;
use tranship_core::ids::{CheckpointName, ContainerName};

/// A container of a node, or a checkpoint of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointAddress {
    /// The node.
    pub node: NodeAddress,
    /// The container.
    pub container: ContainerName,
    /// The checkpoint.
    pub name: Option<CheckpointName>,
}

impl FromStr for CheckpointAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The slashes of a scheme are not those between node and name.
        let after_scheme = text.find("://").map_or(0, |at| at + 3);
        let rest = text.get(after_scheme..).unwrap_or_default();
        let (node, name) = match rest.rfind("//") {
            Some(at) => (
                text.get(..after_scheme + at).unwrap_or_default(),
                rest.get(at + 2..).unwrap_or_default(),
            ),
            None if after_scheme > 0 => {
                return Err("a container is written NODE//NAME, as in ssh://root@host//web".into());
            }
            None => ("local", rest),
        };
        let node = if node.is_empty() { "local" } else { node };
        let (container, name) = match name.split_once('@') {
            None => (name, None),
            Some((container, name)) => (
                container,
                Some(CheckpointName::new(name).map_err(|e| e.to_string())?),
            ),
        };
        Ok(Self {
            node: NodeAddress::parse(node).map_err(|e| e.to_string())?,
            container: ContainerName::new(container).map_err(|e| e.to_string())?,
            name,
        })
    }
}

impl fmt::Display for CheckpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.node != NodeAddress::Local {
            write!(f, "{}//", self.node)?;
        }
        write!(f, "{}", self.container)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, "@{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_container_and_name_are_told_apart() {
        for (text, node, container, name) in [
            ("web", "local", "web", None),
            ("//web@one", "local", "web", Some("one")),
            ("ssh://root@a//web", "ssh://root@a", "web", None),
            (
                "ssh://root@a:22//web@before-1.2",
                "ssh://root@a:22",
                "web",
                Some("before-1.2"),
            ),
            (
                "unix:///run/docker.sock//web",
                "unix:///run/docker.sock",
                "web",
                None,
            ),
        ] {
            let address: CheckpointAddress = text.parse().unwrap();
            assert_eq!(address.node, NodeAddress::parse(node).unwrap(), "{text}");
            assert_eq!(address.container.as_str(), container, "{text}");
            assert_eq!(address.name.as_ref().map(CheckpointName::as_str), name, "{text}");
        }
        for text in [
            "ssh://root@a",
            "ssh://root@a//",
            "",
            "a b",
            "-x",
            "web@",
            "web@../x",
            "web@a@b",
            "ssh://-oProxy//x",
        ] {
            assert!(text.parse::<CheckpointAddress>().is_err(), "{text}");
        }
    }
}
