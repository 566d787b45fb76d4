//! The ends of a copy that are in containers and volumes.

use std::collections::HashMap;
use std::sync::Arc;

use tranship_agent::files::{Holder, RemoteStat};
use tranship_archive::copy_rules::{Present, asserts_directory, cleaned};
use tranship_archive::glob::Glob;
use tranship_core::ids::ContainerName;
use tranship_core::{Fault, FaultKind, NodeAddress};

use crate::commands::Context;
use crate::connect::{self, Connection};

/// The nodes that were connected to, each once.
#[derive(Default)]
pub struct Nodes(HashMap<Vec<u8>, Arc<Connection>>);

/// A path of a container or volume.
pub struct Remote {
    /// Its node.
    pub node: Arc<Connection>,
    /// Whose path it is.
    pub holder: Holder,
    /// The path, as the user wrote it, from the root.
    pub path: Vec<u8>,
}

/// What a source is.
pub struct Source {
    /// It is a directory.
    pub is_directory: bool,
    /// Its path with a link at the end followed, if that was asked for.
    pub resolved: Vec<u8>,
}

fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| {
        Fault::new(
            "usage.cp",
            FaultKind::Environment,
            format!("the {what} is not UTF-8"),
        )
    })
}

impl Nodes {
    async fn node(&mut self, context: &Context, node: Option<&[u8]>) -> Result<Arc<Connection>, Fault> {
        let name = node.filter(|name| !name.is_empty()).unwrap_or(b"local");
        if let Some(known) = self.0.get(name) {
            return Ok(Arc::clone(known));
        }
        let address = NodeAddress::parse(text(name, "node")?)
            .map_err(|e| Fault::new("usage.cp", FaultKind::Environment, e.to_string()))?;
        let connection = Arc::new(connect::connect(context, &address).await?);
        self.0.insert(name.to_vec(), Arc::clone(&connection));
        Ok(connection)
    }

    /// A path of a container.
    ///
    /// # Errors
    /// Why its node cannot be reached.
    pub async fn container(
        &mut self,
        context: &Context,
        node: Option<&[u8]>,
        container: &[u8],
        path: Vec<u8>,
    ) -> Result<Remote, Fault> {
        let name = text(container, "container's name")?;
        let missing = |_| {
            Fault::new(
                "container.not-found",
                FaultKind::Environment,
                format!("No such container: {name}"),
            )
        };
        let name = ContainerName::new(name).map_err(missing)?;
        if path.is_empty() {
            return Err(Fault::new(
                "archive.operand-empty",
                FaultKind::Environment,
                "the path in the container is empty: bad parameter: path cannot be empty",
            ));
        }
        Ok(Remote {
            node: self.node(context, node).await?,
            holder: Holder::Container(name),
            path: cleaned(&path),
        })
    }

    /// A path of a volume.
    ///
    /// # Errors
    /// Why its node cannot be reached.
    pub async fn volume(
        &mut self,
        context: &Context,
        node: Option<&[u8]>,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<Remote, Fault> {
        Ok(Remote {
            node: self.node(context, node).await?,
            holder: Holder::Volume(text(name, "volume's name")?.to_owned()),
            path: cleaned(&path),
        })
    }
}

impl Remote {
    /// The fault, with the node's name unless it is this machine.
    pub fn explain(&self, fault: Fault) -> Fault {
        if self.node.address == NodeAddress::Local {
            fault
        } else {
            fault.on_node(self.node.label.clone())
        }
    }

    /// Its agent says that it can do this.
    pub fn can(&self, capability: &str) -> bool {
        self.node.can(capability)
    }

    async fn stat(&self, path: &[u8]) -> Result<RemoteStat, Fault> {
        let stat = self.node.client.path_stat(&self.holder, path).await;
        stat.map_err(|fault| self.explain(fault))
    }

    /// One of these for each path that this one matches as a pattern, or itself if it is none. What it ends with, a slash or a
    /// dot, they end with as well.
    ///
    /// # Errors
    /// `file.no-match`; what the node says.
    pub async fn matches(self) -> Result<Vec<Self>, Fault> {
        if !Glob::is_pattern(&self.path) {
            return Ok(vec![self]);
        }
        let found = self.node.client.find(&self.holder, &self.path).await;
        let found = found.map_err(|fault| self.explain(fault))?;
        if found.is_empty() {
            return Err(self.explain(Fault::new(
                "file.no-match",
                FaultKind::Environment,
                format!("nothing matches {}", String::from_utf8_lossy(&self.path)),
            )));
        }
        let end: &[u8] = match self.path.as_slice() {
            [.., b'/', b'.'] => b"/.",
            [.., b'/'] => b"/",
            _ => b"",
        };
        let one = |path: Vec<u8>| Self {
            node: Arc::clone(&self.node),
            holder: self.holder.clone(),
            path: [path.as_slice(), end].concat(),
        };
        Ok(found.into_iter().map(one).collect())
    }

    /// What is copied.
    ///
    /// # Errors
    /// `file.not-found`, in docker's words; what the node says.
    pub async fn source(&self, follow: bool) -> Result<Source, Fault> {
        let stat = self.stat(&self.path).await?;
        if !follow || !stat.is_link() {
            return Ok(Source {
                is_directory: stat.is_directory(),
                resolved: self.path.clone(),
            });
        }
        let resolved = stat.link_target.into_bytes();
        Ok(Source {
            is_directory: self.stat(&resolved).await?.is_directory(),
            resolved,
        })
    }

    /// Where a copy goes: the path with a link at its end followed, and what is there. That its parent is there is found out
    /// when the copy begins.
    ///
    /// # Errors
    /// What the node says.
    pub async fn destination(&self) -> Result<(Vec<u8>, Present), Fault> {
        let mut path = self.path.clone();
        let mut found = self.stat(&path).await;
        if let Ok(stat) = &found
            && stat.is_link()
        {
            path = stat.link_target.clone().into_bytes();
            found = self.stat(&path).await;
        }
        match found {
            Ok(stat) if stat.is_directory() => Ok((path, Present::Directory)),
            Ok(_) => Ok((path, Present::File)),
            Err(fault) if fault.code == "archive.not-a-directory" && asserts_directory(&path) => {
                Ok((path, Present::File))
            }
            Err(fault) if fault.code == "file.not-found" => Ok((path, Present::Nothing { parent: true })),
            // Something on the way is no directory: docker says that nothing is found there.
            Err(fault) if fault.code == "archive.not-a-directory" => {
                Ok((path, Present::Nothing { parent: true }))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Both are of one container or volume of one node.
    pub fn is_same_holder(&self, other: &Self) -> bool {
        self.node.hello.instance == other.node.hello.instance && self.holder == other.holder
    }
}
