//! How a volume is named on the command line: `[NODE//]NAME[@TIME]`.

use std::fmt;
use std::str::FromStr;

use tranship_core::NodeAddress;

use crate::on_node;

/// A volume of a node, or a snapshot of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeAddress {
    /// The node.
    pub node: NodeAddress,
    /// The volume; empty where another operand says it.
    pub name: String,
    /// The snapshot, by its time in milliseconds.
    pub snapshot: Option<u64>,
}

impl FromStr for VolumeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, name) = on_node::split(text, "volume", "data")?;
        let (name, snapshot) = match name.split_once('@') {
            None => (name, None),
            Some((name, time)) => {
                let time = time.parse().map_err(|_| {
                    format!("{time:?} is not the time of a snapshot; `tranship volume ls` shows them")
                })?;
                (name, Some(time))
            }
        };
        // Docker's rule for names of volumes (moby, volume/local).
        let first = name.bytes().next().is_none_or(|b| b.is_ascii_alphanumeric());
        let rest = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !first || !rest || name.len() > 255 {
            return Err(format!("{name:?} is not the name of a volume"));
        }
        Ok(Self {
            node,
            name: name.to_owned(),
            snapshot,
        })
    }
}

impl fmt::Display for VolumeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", on_node::prefix(&self.node), self.name)?;
        self.snapshot.map_or(Ok(()), |time| write!(f, "@{time}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_name_and_time_are_told_apart() {
        for (text, node, name, snapshot) in [
            ("data", "local", "data", None),
            ("//data", "local", "data", None),
            ("local//data", "local", "data", None),
            ("ssh://root@a//data", "ssh://root@a", "data", None),
            ("ssh://root@a:22//data@17", "ssh://root@a:22", "data", Some(17)),
            (
                "unix:///run/docker.sock//x.y-z_1",
                "unix:///run/docker.sock",
                "x.y-z_1",
                None,
            ),
            ("ssh://a//", "ssh://a", "", None),
        ] {
            let address: VolumeAddress = text.parse().unwrap();
            assert_eq!(address.node, NodeAddress::parse(node).unwrap(), "{text}");
            assert_eq!(
                (address.name.as_str(), address.snapshot),
                (name, snapshot),
                "{text}"
            );
        }
        for text in [
            "ssh://root@a",
            "a b",
            "../x",
            "-x",
            "x@y",
            "ssh://-oProxy//x",
            ".x",
        ] {
            assert!(text.parse::<VolumeAddress>().is_err(), "{text}");
        }
    }
}
