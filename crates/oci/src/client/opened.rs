//! Uploads that are open at a registry. One that does not become a blob is cancelled, so that the registry need not keep for days what
//! nobody will go on with.

use std::sync::Weak;
use std::time::Duration;

use http::{Method, Response, StatusCode, header};

use super::request::{Ask, text};
use super::{BodyStream, Client, ClientError};
use crate::name::Repository;

/// How long a registry is asked to let go of an upload. Nobody waits for it.
const LONGEST: Duration = Duration::from_secs(10);

/// An upload that a registry has begun. Dropped before it is [`Opened::done`], it is cancelled, as well as that goes and where it surely is
/// one.
pub(super) struct Opened {
    client: Weak<Client>,
    location: String,
    scope: String,
    /// Nothing is to be cancelled.
    done: bool,
}

impl Opened {
    /// Where the registry wants the blob.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    /// It became a blob.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (Some(client), Ok(runtime)) = (self.client.upgrade(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let location = std::mem::take(&mut self.location);
        let scope = std::mem::take(&mut self.scope);
        runtime.spawn(async move {
            // The body may have broken off this very moment: the registry has to see that first.
            tokio::time::sleep(client.patience.breath).await;
            match tokio::time::timeout(LONGEST, client.cancel(location, &scope)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an upload may stay open"),
                Err(_) => tracing::debug!(registry = client.name(), "an upload may stay open: no answer"),
            }
        });
    }
}

impl Client {
    /// The upload that an answer tells of, if it says where.
    pub(super) fn opened(
        &self,
        answer: &Response<BodyStream>,
        repository: &Repository,
        scope: &str,
    ) -> Option<Opened> {
        let location = text(answer.headers(), &header::LOCATION)?;
        Some(Opened {
            client: self.me.clone(),
            location: location.to_owned(),
            scope: scope.to_owned(),
            done: !self.is_upload(location, repository),
        })
    }

    /// Whether this is surely an upload into the repository at the registry itself. A registry says where, and what it names is deleted: it
    /// could be anything that this node reaches.
    fn is_upload(&self, location: &str, repository: &Repository) -> bool {
        let what = "an upload";
        let (Ok(own), Ok(at)) = (self.uri("/v2/", what), self.uri(location, what)) else {
            return false;
        };
        let uploads = format!("/v2/{}/blobs/uploads/", repository.as_str());
        let id = at.path().strip_prefix(&uploads).unwrap_or_default();
        // Some see a way up in dots, also in those that are written otherwise.
        let plain = !id.contains(['%', '\\']) && id.split('/').all(|part| !matches!(part, "." | ".."));
        at.authority() == own.authority() && !id.is_empty() && plain
    }

    async fn cancel(&self, location: String, scope: &str) -> Result<(), ClientError> {
        let what = "the end of an upload";
        let answer = self.ask(&Ask::new(Method::DELETE, location, what, scope)).await?;
        match answer.status() {
            // It may have become a blob, or the registry itself let go of it.
            StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refusal(answer, what).await),
        }
    }
}
