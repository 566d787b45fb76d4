//! What is asked for of a storage element: which one, in the path of a URL, and what of it, in the query.

use tranship_archive::filter::FilterSpec;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;
use tranship_core::ids::ContainerName;

use crate::files::decode;

/// A storage element, as callers name it: `STORE/ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Element {
    /// `volume/NAME`.
    Volume(String),
    /// `layer/CONTAINER`: its own file system, without what is mounted in it.
    Layer(ContainerName),
    /// `bind/PATH`: a directory of the host.
    Bind(String),
    /// `tmpfs/CONTAINER:PATH`.
    Tmpfs(ContainerName, String),
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Layer(container) => write!(f, "the layer of container {container}"),
            Self::Bind(path) => write!(f, "directory {path}"),
            Self::Tmpfs(container, path) => write!(f, "the tmpfs {path} of container {container}"),
        }
    }
}

fn invalid(what: impl Into<String>) -> Fault {
    Fault::new("request.invalid", FaultKind::Usage, what)
}

fn container(name: &str) -> Result<ContainerName, Fault> {
    ContainerName::new(name).map_err(|_| super::no_container(name))
}

fn absolute(path: &str) -> Result<String, Fault> {
    if path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..") {
        return Ok(path.to_owned());
    }
    let text = format!("{path:?} is no absolute path without \"..\"");
    Err(Fault::new("request.path", FaultKind::Usage, text))
}

impl Element {
    /// Reads the two parts of a path.
    ///
    /// # Errors
    /// `store.not-found`, `container.not-found`, `request.path`, `request.invalid`.
    pub(crate) fn parse(store: &str, id: &str) -> Result<Self, Fault> {
        // A plus sign stands for itself in a path.
        let decoded = decode(&id.replace('+', "%2B")).and_then(|bytes| String::from_utf8(bytes).ok());
        let id = decoded.ok_or_else(|| invalid("the element's id is not percent-encoded UTF-8"))?;
        match store {
            "volume" => Ok(Self::Volume(id)),
            "layer" => Ok(Self::Layer(container(&id)?)),
            "bind" => Ok(Self::Bind(absolute(&id)?)),
            "tmpfs" => match id.split_once(':') {
                Some((name, path)) => Ok(Self::Tmpfs(container(name)?, absolute(path)?)),
                None => Err(invalid("a tmpfs is named CONTAINER:PATH")),
            },
            other => Err(Fault::new(
                "store.not-found",
                FaultKind::Usage,
                format!("there is no store {other:?}"),
            )
            .with_hint("the stores are volume, layer, bind and tmpfs")),
        }
    }
}

/// What an export is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ancestor {
    /// `image`, or `image:REFERENCE`: the image that the container was made from.
    Image(Option<String>),
    /// `container:NAME`: the layer of another one.
    Container(ContainerName),
    /// `volume:NAME`.
    Volume(String),
    /// `snapshot:TIME` of the same volume.
    Snapshot(u64),
}

impl Ancestor {
    fn parse(text: &str) -> Result<Self, Fault> {
        match text.split_once(':') {
            None if text == "image" => Ok(Self::Image(None)),
            Some(("image", reference)) => Ok(Self::Image(Some(reference.to_owned()))),
            Some(("container", name)) => Ok(Self::Container(container(name)?)),
            Some(("volume", name)) => Ok(Self::Volume(name.to_owned())),
            Some(("snapshot", time)) => match time.parse() {
                Ok(time) => Ok(Self::Snapshot(time)),
                Err(_) => Err(invalid("a snapshot is named by its time in milliseconds")),
            },
            _ => Err(invalid(
                "an ancestor is image, image:REFERENCE, container:NAME, volume:NAME or snapshot:TIME",
            )),
        }
    }
}

/// What of an element goes in or out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ElementRequest {
    /// Which entries, and under which names.
    pub(crate) spec: FilterSpec,
    /// Files without what is in them.
    pub(crate) headers_only: bool,
    /// Only what differs from this.
    pub(crate) ancestor: Option<Ancestor>,
}

impl ElementRequest {
    /// Reads the query of a URL: a [`FilterSpec`], and perhaps `headers-only=true` and `ancestor=…`.
    ///
    /// # Errors
    /// `request.invalid`, `archive.filter-…`.
    pub(crate) fn from_query(query: &str) -> Result<Self, Fault> {
        let mut asked = Self::default();
        let mut rest = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("headers-only", "true")) => asked.headers_only = true,
                Some(("headers-only", "false")) => {}
                Some(("headers-only", _)) => return Err(invalid("headers-only is true or false")),
                Some(("ancestor", text)) => {
                    let text = decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
                    let text = text.ok_or_else(|| invalid("the ancestor is not percent-encoded UTF-8"))?;
                    asked.ancestor = Some(Ancestor::parse(&text)?);
                }
                _ => rest.push(part),
            }
        }
        asked.spec = FilterSpec::from_query(&rest.join("&"))?;
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_named_by_store_and_id() {
        let parse = |store: &str, id: &str| Element::parse(store, id);
        assert_eq!(parse("volume", "a%20b").unwrap(), Element::Volume("a b".into()));
        assert_eq!(
            parse("bind", "%2Fsrv%2Fx+y").unwrap(),
            Element::Bind("/srv/x+y".into())
        );
        let web = ContainerName::new("web").unwrap();
        assert_eq!(
            parse("tmpfs", "web:%2Fm").unwrap(),
            Element::Tmpfs(web, "/m".into())
        );
        for (store, id, code) in [
            ("disk", "x", "store.not-found"),
            ("layer", "we b", "container.not-found"),
            ("bind", "srv", "request.path"),
            ("bind", "%2Fsrv%2F..%2Fetc", "request.path"),
            ("tmpfs", "web", "request.invalid"),
            ("volume", "%zz", "request.invalid"),
        ] {
            assert_eq!(parse(store, id).unwrap_err().code, code, "{store}/{id}");
        }
    }

    #[test]
    fn the_query_is_a_filter_and_what_it_is_compared_with() {
        let asked =
            ElementRequest::from_query("include=a&ancestor=snapshot%3A7&exclude=&headers-only=true").unwrap();
        assert_eq!(asked.ancestor, Some(Ancestor::Snapshot(7)));
        assert!(asked.headers_only && asked.spec.to_query() == "include=a&exclude=");
        assert_eq!(ElementRequest::from_query("").unwrap(), ElementRequest::default());
        for (query, code) in [
            ("ancestor=7", "request.invalid"),
            ("headers-only=1", "request.invalid"),
            ("include=..", "archive.filter-path"),
            ("include", "archive.filter-syntax"),
            ("other=1", "archive.filter-key"),
        ] {
            assert_eq!(
                ElementRequest::from_query(query).unwrap_err().code,
                code,
                "{query}"
            );
        }
    }
}
