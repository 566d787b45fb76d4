//! The common form in which every room's typed errors reach a person or another node.
//!
//! Each operation has an error enum of its own; [`Explain`] gives it a stable code, a hint and a kind. A [`Fault`] is
//! what is left of such an error after it crossed a wire: the same code, text and hint, and where it happened.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a failure means for the person who ran the command. The binary maps each kind to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Something in the environment or the request; nothing was changed.
    Environment,
    /// The command line was wrong.
    Usage,
    /// The operation failed under way, and everything was put back.
    RolledBack,
    /// It cannot be known which side holds what; a person has to look.
    InDoubt,
    /// A defect in tranship.
    Bug,
}

/// An error with everything that a person needs: what, where, why, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable code such as `engine.unreachable`; scripts may rely on it.
    pub code: String,
    /// What it means for the caller.
    pub kind: FaultKind,
    /// What failed, in one sentence without a full stop.
    pub message: String,
    /// The chain of reasons, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The node where it happened, as the user named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The container concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The file or directory concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The other end of a stream told of it: it happened there, and is not named as `node` yet. See [`Fault::on_either`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_peer: bool,
}

/// What every typed error of the workspace can say about itself.
pub trait Explain: std::error::Error {
    /// Stable code, `room.reason` in kebab case.
    fn code(&self) -> &'static str;

    /// What to do next, where that is known.
    fn hint(&self) -> Option<String> {
        None
    }

    /// What it means for the caller.
    fn kind(&self) -> FaultKind {
        FaultKind::Environment
    }
}

impl Fault {
    /// A fault with a code and a message and nothing else.
    #[must_use]
    pub fn new(code: impl Into<String>, kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            kind,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            node: None,
            container: None,
            path: None,
            of_peer: false,
        }
    }

    /// The fault form of a typed error, with its chain of sources.
    #[must_use]
    pub fn of(error: &dyn Explain) -> Self {
        let mut fault = Self::new(error.code(), error.kind(), error.to_string());
        fault.hint = error.hint();
        let mut source = error.source();
        let mut shown = fault.message.clone();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Wrappers often repeat the text of what they wrap; saying it once is enough.
            if !text.is_empty() && !shown.contains(&text) {
                shown = text.clone();
                fault.causes.push(text);
            }
            source = cause.source();
        }
        fault
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the node, unless one is named already.
    #[must_use]
    pub fn on_node(mut self, node: impl Into<String>) -> Self {
        self.node.get_or_insert_with(|| node.into());
        self
    }

    /// Names the node, unless one is named already: the other end's where that told of it, else this end's.
    #[must_use]
    pub fn on_either(mut self, this: &str, other: &str) -> Self {
        let told = std::mem::take(&mut self.of_peer);
        self.on_node(if told { other } else { this })
    }

    /// Names the container, unless one is named already.
    #[must_use]
    pub fn on_container(mut self, container: impl Into<String>) -> Self {
        self.container.get_or_insert_with(|| container.into());
        self
    }

    /// Adds a reason at the end of the chain.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The same fault with another meaning for the caller.
    #[must_use]
    pub fn with_kind(mut self, kind: FaultKind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl<E: Explain> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::of(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {path}")]
    struct Outer {
        path: &'static str,
        source: std::io::Error,
    }

    impl Explain for Outer {
        fn code(&self) -> &'static str {
            "test.outer"
        }
    }

    #[test]
    fn a_fault_keeps_code_and_causes_over_the_wire() {
        let outer = Outer {
            path: "/x",
            source: std::io::Error::from_raw_os_error(2),
        };
        let fault = Fault::from(outer).on_node("a").on_node("b").with_hint("look");
        let back: Fault = serde_json::from_str(&serde_json::to_string(&fault).unwrap()).unwrap();
        assert_eq!(back, fault);
        assert_eq!(back.node.as_deref(), Some("a"));
        for (of_peer, node) in [(false, "a"), (true, "b")] {
            let mut fault = Fault::new("x.y", FaultKind::Environment, "no");
            fault.of_peer = of_peer;
            let fault = fault.on_either("a", "b").on_either("c", "d");
            assert_eq!((fault.node.as_deref(), fault.of_peer), (Some(node), false));
        }
        assert!(
            back.to_string().starts_with("cannot read /x: No such file"),
            "{back}"
        );
    }
}
