//! A directory as an [`ElementSource`].

use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tranship_core::fault::{Fault, FaultKind};
use tranship_core::storage::{ElementSource, Pipe, ProgressFn, RoundOptions, RoundReport};

use super::{Source, SourceOptions};
use crate::bridge::{IDLE, split};

/// A directory of this node that is read.
pub struct DirectorySource {
    /// Also held by a round whose caller went away, until its threads have ended.
    source: Arc<Mutex<Source>>,
}

impl DirectorySource {
    /// Reads that directory.
    ///
    /// # Errors
    /// The work directory cannot be used.
    pub fn open(options: SourceOptions) -> Result<Self, Fault> {
        let source = Source::open(options).map_err(|error| error.fault())?;
        Ok(Self {
            source: Arc::new(Mutex::new(source)),
        })
    }
}

#[async_trait]
impl ElementSource for DirectorySource {
    async fn round(
        &mut self,
        pipe: Pipe,
        options: RoundOptions,
        progress: ProgressFn,
    ) -> Result<RoundReport, Fault> {
        let stop = CancellationToken::new();
        // Whoever drops this future ends the threads, too.
        let _guard = stop.clone().drop_guard();
        let mut source = Arc::clone(&self.source).lock_owned().await;
        let (input, output) = split(pipe, Handle::current(), IDLE, stop);
        let thread = tokio::task::spawn_blocking(move || {
            let report = source.round(input, output, options, &|so_far| progress(so_far));
            report.map_err(|error| error.fault())
        });
        thread.await.unwrap_or_else(|error| {
            Err(Fault::new(
                "content.defect",
                FaultKind::Bug,
                "a thread of the content source ended early",
            )
            .because(error.to_string()))
        })
    }
}
