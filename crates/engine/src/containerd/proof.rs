//! Whether a containerd is the one behind this engine: a machine may have several, with the same images.

use std::sync::PoisonError;

use serde_json::Value;
use tranship_core::EngineError;
use tranship_core::ids::Digest;

use super::rpc::CallError;
use super::{Containerd, proto};
use crate::docker::{DockerEngine, Identity};
use crate::fault::Ask;
use crate::json::{items, text};

/// How many of the engine's things are looked for before it is given up.
const TRIES: usize = 8;

impl DockerEngine {
    /// Whether the containerd holds something that only this engine's holds: the snapshot of one of its containers, or, where there is
    /// none, an image that the engine knows. Where both say that they hold nothing, there is nothing to take for another's.
    pub(super) async fn is_behind(
        &self,
        identity: &Identity,
        containerd: &Containerd,
    ) -> Result<bool, EngineError> {
        let pair = (identity.id.clone(), containerd.id.clone());
        let known = self.proved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.as_ref() == Some(&pair) {
            return Ok(true);
        }
        let ask = Ask::new("compare containerd with", "engine", "");
        let told = |error: CallError| ask.uncertain(super::explain(error));
        let containers = self.raw.get("/containers/json?all=1", &ask).await?;
        let containers = items(&containers, &[]);
        let mut proved = false;
        for container in containers.iter().take(TRIES) {
            let id = text(container, &["Id"]);
            if containerd
                .has_snapshot(&identity.driver, &id)
                .await
                .map_err(told)?
            {
                proved = true;
                break;
            }
        }
        if containers.is_empty() {
            let targets = containerd.image_targets().await.map_err(told)?;
            if targets.is_empty() {
                let images: Value = self.raw.get("/images/json?all=1", &ask).await?;
                return Ok(items(&images, &[]).is_empty());
            }
            for target in targets.iter().rev().take(TRIES) {
                match self.image_document(target.as_str()).await {
                    Ok(_) => {
                        proved = true;
                        break;
                    }
                    Err(EngineError::NotFound { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
        }
        if proved {
            *self.proved.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
        }
        Ok(proved)
    }
}

impl Containerd {
    async fn has_snapshot(&self, snapshotter: &str, key: &str) -> Result<bool, CallError> {
        let mut message = Vec::new();
        proto::put_text(&mut message, 1, snapshotter);
        proto::put_text(&mut message, 2, key);
        let method = "containerd.services.snapshots.v1.Snapshots/Stat";
        match self.connection.call(method, &message).await {
            Ok(_) => Ok(true),
            Err(CallError::NotFound) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// What the images of the engine's namespace stand for.
    async fn image_targets(&self) -> Result<Vec<Digest>, CallError> {
        let method = "containerd.services.images.v1.Images/List";
        targets_of(&self.connection.call(method, &[]).await?)
    }
}

/// The digests of the images in an answer.
fn targets_of(answer: &[u8]) -> Result<Vec<Digest>, CallError> {
    let mut targets = Vec::new();
    for image in proto::each(answer, 1)? {
        for target in proto::each(image, 3)? {
            targets.extend(Digest::new(proto::text(target, 2)?).ok());
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_digests_of_images() {
        let digest = Digest::of(b"image");
        let text = |field, text: &str| {
            let mut message = Vec::new();
            proto::put_text(&mut message, field, text);
            message
        };
        let target = text(2, digest.as_str());
        let nested = |field, inner: &[u8]| text(field, std::str::from_utf8(inner).unwrap());
        let image = [text(1, "name"), nested(3, &target)].concat();
        let other = [text(1, "other"), nested(3, &text(2, "md5:no"))].concat();
        let answer = [nested(1, &image), nested(1, &other)].concat();
        assert_eq!(targets_of(&answer).unwrap(), [digest]);
        assert!(targets_of(b"").unwrap().is_empty());
    }
}
