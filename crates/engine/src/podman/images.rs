//! Images in the form in which they keep their id: an archive of Docker's for those with a manifest of Docker's, one of OCI's for the
//! others. Podman writes the configuration anew in the other form, and its digest is the id.

use tranship_core::engine::ByteStream;
use tranship_core::{EngineError, ImageSpec};

use super::API;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::text;
use crate::raw::escape;

impl DockerEngine {
    /// The image as an archive. It has no tag: that is given when what arrived has been compared.
    pub(crate) async fn podman_save(&self, image: &ImageSpec) -> Result<ByteStream, EngineError> {
        let id = image.id.hex();
        let ask = Ask::new("export", "image", image.id.as_str());
        let document = self
            .raw
            .get(&format!("{API}/images/{}/json", escape(id)), &ask)
            .await?;
        let format = if text(&document, &["ManifestType"]).starts_with("application/vnd.oci.") {
            "oci-archive"
        } else {
            "docker-archive"
        };
        let path = format!("{API}/images/{}/get?format={format}&compress=false", escape(id));
        self.raw.stream(&path, &ask).await
    }
}
