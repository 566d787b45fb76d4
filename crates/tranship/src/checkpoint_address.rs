//! How a container and its checkpoints are named on the command line: `[NODE//]CONTAINER[@NAME]`.

use std::fmt;
use std::str::FromStr;

use tranship_core::NodeAddress;
use tranship_core::ids::{CheckpointName, ContainerName};

use crate::on_node;

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
        let (node, name) = on_node::split(text, "container", "web")?;
        let (container, name) = match name.split_once('@') {
            None => (name, None),
            Some((container, name)) => (
                container,
                Some(CheckpointName::new(name).map_err(|e| e.to_string())?),
            ),
        };
        Ok(Self {
            node,
            container: ContainerName::new(container).map_err(|e| e.to_string())?,
            name,
        })
    }
}

impl fmt::Display for CheckpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", on_node::prefix(&self.node), self.container)?;
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
