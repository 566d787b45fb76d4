//! A scan whose result is a tree on disk.

use std::fs::File;
use std::path::Path;

use super::assemble::{Job, run};
use super::{Base, Compare, Context, Found, Items, ScanError, ScanOptions, ScanOutcome, Todo, Walk, Wanted};
use crate::entry::{Entry, EntryKind, Extent};
use crate::tree::{Facts, FactsWriter, TreeSummary, TreeWriter};

/// Writes what a scan finds as a tree with its facts.
pub(crate) struct Recorder {
    tree: TreeWriter<File>,
    facts: FactsWriter<File>,
    large: Option<(Entry, Facts, Vec<Extent>)>,
    pub(crate) unsettled: u64,
}

impl Recorder {
    pub(crate) fn create(tree: &Path, facts: &Path) -> Result<Self, ScanError> {
        let create = |path: &Path| {
            File::create(path)
                .map_err(|error| ScanError::io("write", path.as_os_str().as_encoded_bytes(), error))
        };
        Ok(Self {
            tree: TreeWriter::new(create(tree)?),
            facts: FactsWriter::new(create(facts)?),
            large: None,
            unsettled: 0,
        })
    }

    /// Records one entry.
    pub(crate) fn push(&mut self, entry: &Entry, facts: &Facts) -> Result<(), ScanError> {
        self.tree.push(entry)?;
        self.facts.push(facts)?;
        Ok(())
    }

    /// Records what was found. Entries that were read get their extents.
    pub(crate) fn take(&mut self, found: &mut Found) -> Result<(), ScanError> {
        match found {
            Found::Same(entry, facts) => self.push(entry, facts),
            Found::Gone(_) => Ok(()),
            Found::Entry(scanned) => {
                self.unsettled += u64::from(!scanned.settled);
                self.push(&scanned.entry, &scanned.facts)
            }
            Found::Begin(begun) => {
                self.large = Some((begun.entry.clone(), begun.facts, Vec::new()));
                Ok(())
            }
            Found::Piece(piece) => {
                if let Some((_, _, extents)) = &mut self.large {
                    extents.push(piece.extent);
                }
                Ok(())
            }
            Found::End { settled } => {
                let Some((mut entry, mut facts, all)) = self.large.take() else {
                    return Ok(());
                };
                if let EntryKind::File { extents, .. } = &mut entry.kind {
                    *extents = all;
                }
                if !*settled {
                    self.unsettled += 1;
                    facts.read = None;
                }
                self.push(&entry, &facts)
            }
        }
    }

    /// The error for the large file that is being recorded.
    pub(crate) fn changed(&self) -> ScanError {
        super::read::changed(self.large.as_ref().map_or(&b""[..], |(entry, ..)| &entry.path))
    }

    pub(crate) fn finish(self) -> Result<TreeSummary, ScanError> {
        let (summary, _) = self.tree.finish()?;
        self.facts.finish(summary.id)?;
        Ok(summary)
    }
}

/// Scans a directory and writes its tree and facts to two files. With a base whose facts are there, reads only what may have changed
/// since; the result is the same.
///
/// `scratch` is a directory for a file of what there is to do.
///
/// # Errors
///
/// The directory cannot be read, or changed although it is frozen; or the base is damaged.
pub fn scan(
    path: &Path,
    options: &ScanOptions,
    base: Option<&Base>,
    (tree, facts): (&Path, &Path),
    scratch: &Path,
) -> Result<ScanOutcome, ScanError> {
    let root = super::open_root(path)?;
    let context = Context::new(&root, options, super::now(), Wanted::Nothing);
    let job = Job {
        root: &root,
        options,
        context: &context,
    };
    let mut items: Box<dyn Items + Send> = match base {
        Some(base) if base.facts.is_some() => {
            let todo = Todo::look(&root, options, base, scratch, |_| Ok(()))?;
            Box::new(super::Replay::new(base, &todo)?)
        }
        _ => {
            let walk = Walk::new(&root, options)?;
            Box::new(Compare::new(walk, None, options.overlay, root.silent)?)
        }
    };
    let mut recorder = Recorder::create(tree, facts)?;
    let read = run(job, &mut *items, &mut |mut found| {
        if options.frozen
            && let Found::End { settled: false } = found
        {
            let path = recorder
                .large
                .as_ref()
                .map_or(&b""[..], |(entry, ..)| &entry.path);
            return Err(super::read::changed(path));
        }
        recorder.take(&mut found)
    })?;
    let unsettled = recorder.unsettled;
    Ok(ScanOutcome {
        tree: recorder.finish()?,
        unsettled,
        read,
    })
}
