//! Files of a container in and out, through the engine's archive API.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::body_try_stream;
use bollard::query_parameters as query;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use rustix::fs::{Mode, OFlags};
use tranship_core::engine::{ByteStream, ImportOptions, LiveRoot};
use tranship_core::{ContainerId, EngineError};

use crate::cgroups;
use crate::docker::{DockerEngine, UNLIMITED};
use crate::fault::Ask;
use crate::filter::TarFilter;
use crate::images::filtered;
use crate::json::{flag, number};
use crate::raw::escape;

impl DockerEngine {
    /// The archive as the engine sends it. That it is whole is checked: after a failure half-way the engine ends its
    /// answer as if nothing had been.
    pub(crate) async fn files_out(&self, id: &ContainerId, path: &str) -> Result<ByteStream, EngineError> {
        let ask = Ask::new("export", "file", path);
        let options = query::DownloadFromContainerOptionsBuilder::default()
            .path(path)
            .build();
        let docker = self.patient(UNLIMITED);
        let endpoint = self.raw.endpoint().to_owned();
        let errors = ask.clone();
        let archive = docker
            .download_from_container(id.as_str(), Some(options))
            .map_err(move |error| errors.bollard(error, &endpoint));
        let mut archive: ByteStream = Box::pin(archive);
        // A refusal comes in place of the first bytes.
        let first = match archive.next().await {
            Some(first) => first?,
            None => return Err(ask.uncertain("the engine sent nothing")),
        };
        let whole = Box::pin(stream::iter([Ok(first)]).chain(archive));
        Ok(filtered(
            whole,
            TarFilter::new(|_: &[u8]| false).with_end_mark(),
            ask,
        ))
    }

    pub(crate) async fn files_in(
        &self,
        id: &ContainerId,
        path: &str,
        how: ImportOptions,
        archive: ByteStream,
    ) -> Result<(), EngineError> {
        let ask = Ask::new("import", "file", path);
        let broken: Arc<Mutex<Option<EngineError>>> = Arc::default();
        let reason = Arc::clone(&broken);
        let body = archive.map_err(move |error| {
            let message = error.to_string();
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            io::Error::other(message)
        });
        let mut options = query::UploadToContainerOptionsBuilder::default().path(path);
        if how.no_overwrite_dir_non_dir {
            options = options.no_overwrite_dir_non_dir("true");
        }
        if how.copy_uid_gid {
            options = options.copy_uidgid("true");
        }
        let options = options.build();
        let sent = self
            .patient(UNLIMITED)
            .upload_to_container(id.as_str(), Some(options), body_try_stream(body))
            .await;
        // What broke the stream says more than the engine's words about an unexpected end.
        let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match broken {
            Some(error) => Err(error),
            None => self.told(sent, &ask),
        }
    }

    /// The header with which the engine says what is at a path.
    pub(crate) async fn stat_in(&self, id: &ContainerId, path: &str) -> Result<String, EngineError> {
        let ask = Ask::new("look at", "file", path);
        let path = escape(path);
        let url = format!("/containers/{}/archive?path={path}", escape(id.as_str()));
        self.raw
            .header(Method::HEAD, &url, "X-Docker-Container-Path-Stat", &ask)
            .await
    }

    /// The root directory of a process of the container, if this process may use it as it is.
    pub(crate) async fn root_of_process(&self, id: &ContainerId) -> Result<Option<LiveRoot>, EngineError> {
        if !self.wants_direct() || self.identity().await?.shifts_ids {
            return Ok(None);
        }
        let document = self.document(id.as_str()).await?;
        let process = number(&document, &["State", "Pid"]);
        if !flag(&document, &["State", "Running"]) || process <= 0 {
            return Ok(None);
        }
        let directory = self.root_prefix.join("proc").join(process.to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(root) = rustix::fs::open(directory.join("root"), flags, Mode::empty()) else {
            return Ok(None);
        };
        // The number may mean another process here, or by now: only what is looked at after the directory was opened counts.
        let groups = std::fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        Ok(cgroups::are_of(&groups, id.as_str()).then_some(LiveRoot {
            directory: root,
            process,
        }))
    }
}
