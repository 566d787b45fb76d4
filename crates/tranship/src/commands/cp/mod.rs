//! `tranship cp`: copies files between containers, volumes, this machine and archives.

mod between;
mod delta;
mod local;
mod remote;
mod transfer;

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tranship_agent::files::{PathRequest, Unpacked};
use tranship_archive::copy_rules::{
    CopyRuleError, Operand, Placement, Present, check_operands, place, place_stream,
};
use tranship_core::{Fault, FaultKind};

use self::between::{Way, Ways};
use self::local::LocalSource;
use self::remote::Remote;
pub use self::transfer::Meter;
use super::Context;
use crate::cli::CpArgs;
use crate::failure::INTERRUPTED;
use crate::interrupts::Interrupts;
use crate::progress::Line;
use crate::render::bytes;
use crate::ui::Ui;

/// How long an interrupted copy may take to end in order.
const CLEANING_UP: Duration = Duration::from_secs(3);

/// One end of a copy, with its node.
enum End {
    Local(Vec<u8>),
    Stream,
    Remote(Remote),
}

/// Docker ends with 1 whatever is wrong with the arguments.
fn rule(error: &CopyRuleError) -> Fault {
    Fault::of(error).with_kind(FaultKind::Environment)
}

/// Shows how a copy goes on, and says when it is to end.
#[derive(Clone)]
struct Watch {
    ui: Ui,
    given_up: CancellationToken,
}

impl Watch {
    fn meter(&self) -> Meter {
        Meter::new(Line::new(&self.ui))
    }
}

fn interrupted() -> Fault {
    Fault::new(
        INTERRUPTED,
        FaultKind::Environment,
        "the copy was interrupted; files that were complete stay",
    )
    .with_hint("run it again; with --partial, it goes on within a large file the next time")
}

/// Runs the command.
pub async fn run(context: &Context, args: &CpArgs) -> Result<(), Fault> {
    let watch = Watch {
        ui: context.ui.clone(),
        given_up: CancellationToken::new(),
    };
    let mut copying = std::pin::pin!(copy_all(context, args, &watch));
    if args.operands.iter().any(|operand| operand == "-") {
        // Nothing is written here, and a reader or writer that stands still would hold an orderly end up.
        return copying.await;
    }
    let mut signals = Interrupts::unless_ignored()?;
    tokio::select! {
        done = &mut copying => return done,
        () = signals.next() => watch.given_up.cancel(),
    }
    // What is half written is taken away by whoever writes it.
    tokio::select! {
        // It may have been complete in this very moment. What else it ended with comes of the interrupt.
        done = &mut copying => done.map_err(|_| interrupted()),
        () = tokio::time::sleep(CLEANING_UP) => Err(interrupted()),
        () = signals.next() => Err(interrupted()),
    }
}

async fn copy_all(context: &Context, args: &CpArgs, watch: &Watch) -> Result<(), Fault> {
    let begun = Instant::now();
    let mut operands = Vec::new();
    for text in &args.operands {
        operands.push(Operand::parse(text.as_bytes()).map_err(|e| rule(&e))?);
    }
    let (Some(last), Some(shown)) = (operands.pop(), args.operands.last()) else {
        return Err(rule(&CopyRuleError::Empty { which: "destination" }));
    };
    for source in &operands {
        check_operands(source, &last).map_err(|e| rule(&e))?;
    }
    if operands.len() > 1 && operands.contains(&Operand::Stream) {
        return Err(usage("an archive from standard input is copied alone"));
    }
    if operands.len() > 1 && last == Operand::Stream {
        return Err(usage("one source goes to standard output"));
    }
    let mut nodes = remote::Nodes::default();
    let delta = only_differences(args);
    if delta && (operands.contains(&Operand::Stream) || last == Operand::Stream) {
        return Err(usage(
            "--delta and --partial compare files, and an archive has none to compare with",
        ));
    }
    let destination = end(context, &mut nodes, last).await?;
    let mut done = Unpacked::default();
    let mut sources = Vec::new();
    for operand in operands {
        match end(context, &mut nodes, operand).await? {
            End::Remote(remote) if args.glob => {
                sources.extend(remote.matches().await?.into_iter().map(End::Remote));
            }
            other => sources.push(other),
        }
    }
    let several = sources.len() > 1;
    if several && matches!(destination, End::Stream) {
        return Err(usage("one source goes to standard output"));
    }
    let mut ways = Ways::new(context, args.relay);
    let mut taken: Vec<Way> = Vec::new();
    let mut sent = 0;
    for source in sources {
        if watch.given_up.is_cancelled() {
            return Err(interrupted());
        }
        let (copied, way) = copy(args, &mut ways, source, &destination, several, watch).await?;
        if let Some(Way::Difference { bytes }) = way {
            sent += bytes;
        }
        taken.extend(way);
        done.entries += copied.entries;
        done.bytes += copied.bytes;
        done.skipped.extend(copied.skipped);
    }
    for skipped in &done.skipped {
        context.ui.warn(&format!("left out: {skipped}"));
    }
    if matches!(destination, End::Stream) {
        return Ok(());
    }
    if context.ui.json {
        return context.ui.json(&serde_json::json!({
            "entries": done.entries,
            "bytes": done.bytes,
            "skipped": done.skipped,
            "ways": taken,
            "sent": delta.then_some(sent),
            "milliseconds": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        }));
    }
    let how = match taken.first() {
        Some(Way::Difference { .. }) => format!(", {} sent", bytes(sent)),
        Some(way) => format!(", {}", way.in_words()),
        None => String::new(),
    };
    context.ui.say(&format!(
        "copied {} in {} entries to {}{how}",
        bytes(done.bytes),
        done.entries,
        shown.to_string_lossy(),
    ));
    Ok(())
}

fn usage(text: &str) -> Fault {
    Fault::new("usage.cp", FaultKind::Environment, text)
}

async fn end(context: &Context, nodes: &mut remote::Nodes, operand: Operand) -> Result<End, Fault> {
    match operand {
        Operand::Local(path) => Ok(End::Local(path)),
        Operand::Stream => Ok(End::Stream),
        Operand::Container {
            node,
            container,
            path,
        } => Ok(End::Remote(
            nodes
                .container(context, node.as_deref(), &container, path)
                .await?,
        )),
        Operand::Volume { node, name, path } => Ok(End::Remote(
            nodes.volume(context, node.as_deref(), &name, path).await?,
        )),
    }
}

/// To go on where a copy was broken off is to send what is not there yet.
fn only_differences(args: &CpArgs) -> bool {
    args.delta || args.partial
}

/// What of the source goes along, and how it is written.
fn reading(args: &CpArgs) -> PathRequest {
    let texts = |list: &[std::ffi::OsString]| list.iter().map(|text| text.as_bytes().to_vec()).collect();
    PathRequest {
        follow: args.follow_link,
        include: texts(&args.include),
        exclude: texts(&args.exclude),
        rich: true,
        ..PathRequest::default()
    }
}

fn writing(args: &CpArgs, directory: Vec<u8>) -> PathRequest {
    PathRequest {
        path: directory,
        no_overwrite_dir_non_dir: true,
        copy_uid_gid: args.archive,
        owner: args.chown,
        partial: args.partial,
        ..PathRequest::default()
    }
}

/// The name in the archive that a placement asks for.
fn name_of(placement: &Placement) -> Vec<u8> {
    match placement.to.as_slice() {
        b"/" => Vec::new(),
        name => name.to_vec(),
    }
}

/// Copies one source. Between two containers or volumes there are several ways.
async fn copy(
    args: &CpArgs,
    ways: &mut Ways<'_>,
    source: End,
    destination: &End,
    several: bool,
    watch: &Watch,
) -> Result<(Unpacked, Option<Way>), Fault> {
    let mut asked = reading(args);
    let delta = only_differences(args);
    let done = match (source, destination) {
        (End::Stream, End::Remote(to)) => {
            let (path, present) = to.destination().await?;
            let placement = place_stream(&path, present).map_err(|e| rule(&e))?;
            transfer::from_stdin(asked, to, &writing(args, placement.directory), watch).await
        }
        (End::Local(path), End::Remote(to)) => {
            let source = LocalSource::find(&path, args.follow_link)?;
            let (target, present) = to.destination().await?;
            only_into_directories(several, present, &target)?;
            let placement =
                place(&source.path, source.is_directory, &target, present).map_err(|e| rule(&e))?;
            asked.name = Some(name_of(&placement));
            asked.path = source.path;
            let writing = writing(args, placement.directory);
            if delta {
                return delta::copy(None, asked, delta::To::Remote(to, writing), watch).await;
            }
            match between::here(args, to, true, &asked, &writing, watch).await? {
                Some((done, way)) => return Ok((done, Some(way))),
                None => transfer::from_here(asked, to, &writing, watch).await,
            }
        }
        (End::Remote(from), End::Stream) => {
            let stat = from.source(args.follow_link).await?;
            asked.path = stat.resolved;
            asked.follow = false;
            asked.rich = false;
            transfer::to_stdout(&from, &asked).await
        }
        (End::Remote(from), End::Local(path)) => {
            let stat = from.source(args.follow_link).await?;
            let (target, present) = local::destination(path)?;
            only_into_directories(several, present, &target)?;
            let placement = place(&from.path, stat.is_directory, &target, present).map_err(|e| rule(&e))?;
            asked.name = Some(name_of(&placement));
            asked.path.clone_from(&from.path);
            // Links in the path of a directory here are followed as usual, wherever they lead.
            let whole = std::fs::canonicalize(OsStr::from_bytes(&placement.directory));
            let whole = whole.map_or(placement.directory, |whole| whole.into_os_string().into_vec());
            let writing = writing(args, whole);
            if delta {
                return delta::copy(Some(&from), asked, delta::To::Here(writing), watch).await;
            }
            match between::here(args, &from, false, &asked, &writing, watch).await? {
                Some((done, way)) => return Ok((done, Some(way))),
                None => transfer::to_here(&from, &asked, writing, watch).await,
            }
        }
        (End::Remote(from), End::Remote(to)) => {
            let stat = from.source(args.follow_link).await?;
            let (target, present) = to.destination().await?;
            only_into_directories(several, present, &target)?;
            let placement = place(&from.path, stat.is_directory, &target, present).map_err(|e| rule(&e))?;
            asked.name = Some(name_of(&placement));
            asked.path.clone_from(&from.path);
            if from.is_same_holder(to) {
                within(&from.path, &target)?;
            }
            let writing = writing(args, placement.directory);
            if delta {
                return delta::copy(Some(&from), asked, delta::To::Remote(to, writing), watch).await;
            }
            let (done, way) = ways.copy(&from, &asked, to, &writing, watch).await?;
            return Ok((done, Some(way)));
        }
        _ => Err(rule(&CopyRuleError::NoContainer)),
    };
    Ok((done?, None))
}

fn only_into_directories(several: bool, present: Present, path: &[u8]) -> Result<(), Fault> {
    if several && present != Present::Directory {
        let path = path.to_vec();
        return Err(rule(&CopyRuleError::MustBeDirectory { path }));
    }
    Ok(())
}

/// A directory that is copied into itself would be read as it is written.
fn within(source: &[u8], destination: &[u8]) -> Result<(), Fault> {
    use tranship_archive::TreePath;
    let (source, destination) = (TreePath::of_request(source)?, TreePath::of_request(destination)?);
    if destination.is_within(&source) && !source.is_root() && destination != source {
        return Err(usage("a directory cannot be copied into itself"));
    }
    Ok(())
}
