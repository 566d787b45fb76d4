//! One storage element as an archive, by a filter: what a request over a whole container is split into, and what it differs in
//! from another one.
//!
//! An element is reached directly where that is possible. Elsewhere the engine gives and takes archives, and they are filtered
//! on their way.

mod api;
mod request;

use std::io::{BufWriter, Seek as _};
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;
use tranship_archive::confined::{
    Devices, ExportOptions, ExtractOptions, Extractor, Links, Root, export_difference, export_element,
};
use tranship_archive::filter::{FilterSpec, Pattern};
use tranship_archive::path::TreePath;
use tranship_archive::writer::Writer;
use tranship_core::container::{ContainerSpec, ContainerState};
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::ids::ContainerName;
use tranship_core::storage::{ElementAt, ElementPlace};
use tranship_core::{ContainerId, EngineError, Fault};

pub(crate) use self::api::answer;
use self::request::{Ancestor, Element, ElementRequest};
use crate::files::bridge::{self, Pieces, StreamReader};
use crate::files::{RemoteStat, Unpacked, blocking, live_way, rewrite, spool};
use crate::state::Agent;
use crate::writes;

/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAY: rustix::fs::FsWord = 0x794c_7630;

fn fault(code: &str, text: impl Into<String>) -> Fault {
    Fault::new(code, FaultKind::Environment, text)
}

fn no_container(name: &str) -> Fault {
    fault("container.not-found", format!("No such container: {name}"))
}

fn only_directly(element: &Element) -> Fault {
    let text = format!("{element} is reached through the engine only, which cannot do this");
    fault("element.route", text)
        .with_hint("start the container if it is one's layer, and log in as root there")
}

/// How an element is reached.
enum Way {
    Directory(Arc<Root>),
    Engine(ContainerId, String),
}

/// An element within reach.
struct Opened {
    way: Way,
    /// What a container wrote, as its overlay keeps it.
    upper: Option<Arc<Root>>,
    /// The container that it belongs to.
    spec: Option<Box<ContainerSpec>>,
    place: ElementPlace,
}

impl Opened {
    /// The directory.
    fn directory(&self, element: &Element) -> Result<Arc<Root>, Fault> {
        match &self.way {
            Way::Directory(root) => Ok(Arc::clone(root)),
            Way::Engine(..) => Err(only_directly(element)),
        }
    }

    /// Mount points of the container, which the engine shows in place of the layer.
    fn covered(&self) -> Result<Vec<TreePath>, Fault> {
        let mounts = self.spec.iter().flat_map(|spec| &spec.mounts);
        let paths = mounts.map(|mount| Ok(TreePath::of_request(mount.destination.as_bytes())?));
        paths
            .filter(|path| path.as_ref().is_ok_and(|path| !path.is_root()) || path.is_err())
            .collect()
    }
}

impl Agent {
    async fn container_of(&self, name: &ContainerName) -> Result<Box<ContainerSpec>, Fault> {
        match self.engine().inspect(name).await {
            Ok(spec) => Ok(Box::new(spec)),
            Err(EngineError::NotFound {
                what: "container", ..
            }) => Err(no_container(name.as_str())),
            Err(other) => Err(other.into()),
        }
    }

    async fn open_element(&self, element: &Element) -> Result<Opened, Fault> {
        let (at, spec) = match element {
            Element::Volume(name) => (ElementAt::Volume { name: name.clone() }, None),
            Element::Bind(path) => (ElementAt::Bind { path: path.clone() }, None),
            Element::Layer(name) => {
                let spec = self.container_of(name).await?;
                let container = spec.id.clone();
                (ElementAt::Layer { container }, Some(spec))
            }
            Element::Tmpfs(name, path) => {
                let spec = self.container_of(name).await?;
                if !is_alive(&spec) {
                    return Err(not_running(element));
                }
                let (container, path) = (spec.id.clone(), path.clone());
                (ElementAt::Tmpfs { container, path }, Some(spec))
            }
        };
        let place = self.engine().locate(&at).await?;
        let opened = open_place(&place, spec.as_deref());
        match opened {
            Ok((way, upper)) => Ok(Opened {
                way,
                upper,
                spec,
                place,
            }),
            Err(fault) => {
                self.let_go(&place).await;
                Err(fault)
            }
        }
    }

    async fn let_go(&self, place: &ElementPlace) {
        if let Err(error) = self.engine().release(place).await {
            tracing::warn!("what reached an element could not be released: {error}");
        }
    }

    /// What is at a path of the element.
    async fn element_stat(&self, element: &Element, spec: &FilterSpec) -> Result<RemoteStat, Fault> {
        let path = match spec.include.as_slice() {
            [] => b"/".to_vec(),
            [one] => [b"/", one.to_bytes().as_slice()].concat(),
            _ => {
                return Err(fault(
                    "element.stat",
                    "what is at one path is told: include one path, or none for the root",
                ));
            }
        };
        let opened = self.open_element(element).await?;
        let told = |error: Fault| match error.code.as_str() {
            "archive.not-found" => {
                let path = String::from_utf8_lossy(&path);
                fault("file.not-found", format!("there is no {path} in {element}"))
            }
            _ => error,
        };
        let stat = match &opened.way {
            Way::Directory(root) => {
                let (root, path) = (Arc::clone(root), path.clone());
                blocking(move || root.stat(&path).map(RemoteStat::from).map_err(|e| Fault::of(&e))).await
            }
            Way::Engine(container, prefix) => {
                let whole = format!("{prefix}{}", String::from_utf8_lossy(&path));
                match self.engine().path_stat(container, &whole).await {
                    Ok(header) => RemoteStat::from_header(&header),
                    Err(EngineError::NotFound { what: "file", .. }) => {
                        Err(fault("archive.not-found", "it is not there"))
                    }
                    Err(error) => Err(error.into()),
                }
            }
        };
        self.let_go(&opened.place).await;
        stat.map_err(told)
    }

    /// What of an element a filter lets through, under the names that it gives.
    async fn pack_element(
        self: &Arc<Self>,
        element: &Element,
        asked: ElementRequest,
    ) -> Result<Pieces, Fault> {
        let opened = self.open_element(element).await?;
        let packed = self.pack_opened_element(element, &opened, asked).await;
        match packed {
            Ok(pieces) => {
                let agent = Arc::clone(self);
                Ok(live_way::then(pieces, async move {
                    agent.let_go(&opened.place).await
                }))
            }
            Err(fault) => {
                self.let_go(&opened.place).await;
                Err(fault)
            }
        }
    }

    async fn pack_opened_element(
        self: &Arc<Self>,
        element: &Element,
        opened: &Opened,
        asked: ElementRequest,
    ) -> Result<Pieces, Fault> {
        let mut options = ExportOptions {
            headers_only: asked.headers_only,
            ..ExportOptions::default()
        };
        let spec = asked.spec;
        let Some(ancestor) = asked.ancestor else {
            return match &opened.way {
                Way::Directory(root) => {
                    let root = Arc::clone(root);
                    written(move |writer| Ok(export_element(&root, &spec, writer, &options).map(drop)?)).await
                }
                Way::Engine(..) if asked.headers_only => Err(only_directly(element)),
                Way::Engine(container, prefix) => self.filtered(container, prefix, opened, spec).await,
            };
        };
        let unfit = || {
            fault("element.ancestor", format!("{element} has no such ancestor"))
                .with_hint("a layer has image and container:NAME, a volume has snapshot:TIME and volume:NAME")
        };
        if let (Element::Layer(_), Ancestor::Image(reference)) = (element, &ancestor) {
            let own = opened.spec.as_ref().is_some_and(|spec| match reference {
                Some(text) => *text == spec.image_reference || *text == spec.image.id.as_str(),
                None => true,
            });
            let Some(upper) = opened.upper.clone() else {
                return Err(only_directly(element));
            };
            if !own {
                return Err(unfit());
            }
            options.upper = true;
            return written(move |writer| Ok(export_element(&upper, &spec, writer, &options).map(drop)?))
                .await;
        }
        let other = match (element, ancestor) {
            (Element::Layer(_), Ancestor::Container(name)) => Element::Layer(name),
            (Element::Volume(_), Ancestor::Volume(name)) => Element::Volume(name),
            (Element::Volume(name), Ancestor::Snapshot(time)) => {
                let place = self.snapshot_place(name, time).await?;
                let ElementPlace::Directory { path, .. } = place else {
                    return Err(unfit());
                };
                let (root, old) = (opened.directory(element)?, Root::open(&path, Links::InRoot)?);
                return difference(root, Arc::new(old), spec, options).await;
            }
            _ => return Err(unfit()),
        };
        let root = opened.directory(element)?;
        let before = self.open_element(&other).await?;
        let packed = match before.directory(&other) {
            Ok(old) => difference(root, old, spec, options).await,
            Err(fault) => Err(fault),
        };
        // What is open stays within reach.
        self.let_go(&before.place).await;
        packed
    }

    /// Through the engine, which shows a container with what is mounted in it.
    async fn filtered(
        &self,
        container: &ContainerId,
        prefix: &str,
        opened: &Opened,
        mut spec: FilterSpec,
    ) -> Result<Pieces, Fault> {
        spec.exclude
            .extend(opened.covered()?.into_iter().map(Pattern::below));
        let archive = self
            .engine()
            .export_path(container, &format!("{prefix}/."))
            .await?;
        let reader = bridge::reader(archive);
        bridge::writer(move |out| rewrite::rewrite(reader, out, &spec, None).map(drop)).await
    }

    /// Unpacks what of an archive a filter lets through, under the names that it gives.
    async fn unpack_element(
        self: &Arc<Self>,
        element: &Element,
        asked: ElementRequest,
        archive: StreamReader,
    ) -> Result<Unpacked, Fault> {
        if asked.ancestor.is_some() || asked.headers_only {
            let text = "only an export has an ancestor, or headers only";
            return Err(Fault::new("request.invalid", FaultKind::Usage, text));
        }
        let opened = self.open_element(element).await?;
        let elements = match (&opened.spec, element) {
            (Some(spec), _) => writes::of_container(spec),
            (None, Element::Bind(path)) => vec![writes::bind(path)],
            (None, Element::Volume(name)) => vec![ElementAt::Volume { name: name.clone() }],
            (None, Element::Layer(_) | Element::Tmpfs(..)) => Vec::new(),
        };
        let writing = match self.registry.begin_write(elements) {
            Ok(writing) => writing,
            Err(fault) => {
                self.let_go(&opened.place).await;
                return Err(fault);
            }
        };
        let done = self
            .unpack_opened_element(element, &opened, asked.spec, archive)
            .await;
        let done = match (done, &opened.spec) {
            (Ok(done), Some(spec)) => self.still(spec, element).await.map(|()| done),
            (done, _) => done,
        };
        self.let_go(&opened.place).await;
        drop(writing);
        done
    }

    async fn still(&self, spec: &ContainerSpec, element: &Element) -> Result<(), Fault> {
        let now = self.engine().status(&spec.id).await?;
        if now.started_at == spec.status.started_at && is_state_alive(now.state) == is_alive(spec) {
            return Ok(());
        }
        let text = format!("the container of {element} was stopped or started during the copy");
        Err(fault("container.changed", text).with_hint("run the copy again"))
    }

    async fn unpack_opened_element(
        &self,
        element: &Element,
        opened: &Opened,
        spec: FilterSpec,
        archive: StreamReader,
    ) -> Result<Unpacked, Fault> {
        if let (Element::Layer(_), Some(container)) = (element, &opened.spec)
            && is_true(container, "/HostConfig/ReadonlyRootfs")
        {
            return Err(fault("file.read-only", "container rootfs is marked read-only"));
        }
        let layer = matches!(element, Element::Layer(_));
        match &opened.way {
            Way::Directory(root) => {
                let root = Arc::clone(root);
                let read_only = format!("{element} is mounted read-only");
                blocking(move || {
                    if root.is_read_only(b"/").map_err(|e| Fault::of(&e))? {
                        return Err(fault("file.read-only", read_only));
                    }
                    unpack(&root, &spec, archive, layer)
                })
                .await
            }
            Way::Engine(container, prefix) => {
                let covered = opened.covered()?;
                let directory = self.copies.spool();
                let (file, done) = blocking(move || {
                    let failed = |e: std::io::Error| spool::cannot_keep(&directory, &e);
                    let mut file = spool::nameless(&directory).map_err(failed)?;
                    let out = BufWriter::with_capacity(262_144, &mut file);
                    let done = rewrite::rewrite_checked(archive, out, &spec, None, |path| {
                        match covered.iter().find(|mount| path.is_within(mount)) {
                            Some(mount) => Err(fault(
                                "element.covered",
                                format!("{path} belongs to what is mounted at {mount}, not to the layer"),
                            )),
                            None => Ok(()),
                        }
                    })?;
                    file.rewind().map_err(failed)?;
                    Ok((file, done))
                })
                .await?;
                let file = tokio::fs::File::from_std(file);
                let archive: ByteStream = Box::pin(
                    tokio_util::io::ReaderStream::with_capacity(file, 262_144).map(|piece| {
                        piece.map_err(|e| EngineError::Uncertain {
                            action: "read the archive".into(),
                            message: e.to_string(),
                        })
                    }),
                );
                let path = if prefix.is_empty() { "/" } else { prefix };
                self.engine().import_path(container, path, archive).await?;
                Ok(done)
            }
        }
    }
}

async fn written(
    work: impl FnOnce(&mut Writer<&mut bridge::StreamWriter>) -> Result<(), Fault> + Send + 'static,
) -> Result<Pieces, Fault> {
    bridge::writer(move |out| {
        let mut writer = Writer::new(out);
        work(&mut writer)?;
        writer.finish()?;
        Ok(())
    })
    .await
}

async fn difference(
    new: Arc<Root>,
    old: Arc<Root>,
    spec: FilterSpec,
    options: ExportOptions,
) -> Result<Pieces, Fault> {
    written(move |writer| Ok(export_difference(&new, &old, &spec, writer, &options).map(drop)?)).await
}

fn unpack(root: &Root, spec: &FilterSpec, archive: StreamReader, layer: bool) -> Result<Unpacked, Fault> {
    let options = ExtractOptions {
        devices: Devices::Create,
        // A difference is not unpacked: its marks would become files.
        refuse_whiteouts: layer,
        ..ExtractOptions::default()
    };
    let mut reader = rewrite::open(archive)?;
    let mut extractor = Extractor::new(root, TreePath::root(), options)?;
    let mut buffer = vec![0; 262_144];
    while let Some(entry) = reader.next_entry()? {
        let Some(entry) = spec.apply(&entry)? else {
            continue;
        };
        extractor.start(&entry)?;
        while let Some(extent) = reader.read_extent(&mut buffer)? {
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            extractor.write(extent.offset, buffer.get(..length).unwrap_or_default())?;
        }
    }
    let report = extractor.end()?;
    Ok(Unpacked {
        entries: report.entries,
        bytes: report.bytes,
        skipped: Vec::new(),
    })
}

fn open_place(place: &ElementPlace, spec: Option<&ContainerSpec>) -> Result<(Way, Option<Arc<Root>>), Fault> {
    match (place, spec) {
        (ElementPlace::Directory { path, overlay: true }, Some(spec)) => {
            let upper = Some(Arc::new(Root::open(path, Links::InRoot)?));
            // The engine mounts it while the container runs.
            let way = match merged(&path.with_file_name("merged")).filter(|_| is_alive(spec)) {
                Some(root) => Way::Directory(Arc::new(root)),
                None => Way::Engine(spec.id.clone(), String::new()),
            };
            Ok((way, upper))
        }
        (ElementPlace::Directory { path, .. }, _) => {
            Ok((Way::Directory(Arc::new(Root::open(path, Links::InRoot)?)), None))
        }
        (ElementPlace::Archive { container, path }, _) => Ok((
            Way::Engine(container.clone(), path.trim_end_matches('/').to_owned()),
            None,
        )),
    }
}

/// The overlay at a path, if it is mounted there.
fn merged(path: &Path) -> Option<Root> {
    use rustix::fs::{Mode, OFlags};
    let fd = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let overlay = rustix::fs::fstatfs(&fd).is_ok_and(|system| system.f_type == OVERLAY);
    overlay.then(|| Root::from_fd(fd, Links::InRoot))
}

fn is_state_alive(state: ContainerState) -> bool {
    matches!(state, ContainerState::Running | ContainerState::Paused)
}

fn is_alive(spec: &ContainerSpec) -> bool {
    is_state_alive(spec.status.state)
}

fn is_true(spec: &ContainerSpec, pointer: &str) -> bool {
    spec.document
        .pointer(pointer)
        .and_then(serde_json::Value::as_bool)
        == Some(true)
}

fn not_running(element: &Element) -> Fault {
    fault(
        "container.not-running",
        format!("{element} is there only while the container runs"),
    )
    .with_hint("start it")
}
