//! A directory as an [`ElementSink`].

use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tranship_core::fault::{Fault, FaultKind};
use tranship_core::storage::{ElementSink, Pipe, ProgressFn, RoundReport};

use super::{SinkOptions, round};
use crate::bridge::{IDLE, split};

/// A directory of this node that is written.
pub struct DirectorySink {
    options: Arc<SinkOptions>,
}

impl DirectorySink {
    /// Writes to that directory.
    #[must_use]
    pub fn new(options: SinkOptions) -> Self {
        Self {
            options: Arc::new(options),
        }
    }
}

#[async_trait]
impl ElementSink for DirectorySink {
    async fn round(&mut self, pipe: Pipe, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let stop = CancellationToken::new();
        // Whoever drops this future ends the threads, too.
        let _guard = stop.clone().drop_guard();
        let (input, output) = split(pipe, Handle::current(), IDLE, stop);
        let options = Arc::clone(&self.options);
        let thread = tokio::task::spawn_blocking(move || {
            round(input, output, &options, &|so_far| progress(so_far)).map_err(|error| error.fault())
        });
        thread.await.unwrap_or_else(|error| {
            Err(Fault::new(
                "content.defect",
                FaultKind::Bug,
                "a thread of the content sink ended early",
            )
            .because(error.to_string()))
        })
    }
}
