//! What is said of an image that was brought to a node.

use tranship_migrate::images::ImageWay;

use crate::render::{bytes, duration_ms};

/// How one image was brought.
#[derive(serde::Serialize)]
pub(super) struct Brought {
    pub(super) image: String,
    pub(super) id: String,
    /// It was there before, and nothing travelled but its tag.
    pub(super) there: bool,
    /// The tag that it got, and the other image that this meant there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retagged: Option<Retagged>,
    /// The way that it took, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_way: Option<ImageWay>,
    pub(super) layers: usize,
    pub(super) layers_sent: usize,
    /// Bytes that came to the node.
    pub(super) bytes: u64,
    /// Bytes that went to a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pushed_bytes: Option<u64>,
    pub(super) milliseconds: u64,
}

/// A tag that was taken from another image.
#[derive(serde::Serialize)]
pub(super) struct Retagged {
    pub(super) tag: String,
    /// The image's id.
    pub(super) before: String,
}

impl Brought {
    /// For people. `to` is the node that it came to.
    pub(super) fn in_words(&self, to: &str) -> String {
        let mut words = self.came_in_words(to);
        if let Some(Retagged { tag, before }) = &self.retagged {
            words.push_str(&format!("; {tag} meant {before} there before"));
        }
        words
    }

    fn came_in_words(&self, to: &str) -> String {
        let Some(way) = self.image_way.as_ref().filter(|_| !self.there) else {
            return format!("{} → {to}: is there already", self.image);
        };
        let pushed = match self.pushed_bytes {
            Some(pushed) => format!(" ({} went to the registry)", bytes(pushed)),
            None => String::new(),
        };
        format!(
            "{} → {to}: {} of {} layers sent, {}{pushed} in {}, by {}: {}",
            self.image,
            self.layers_sent,
            self.layers,
            bytes(self.bytes),
            duration_ms(self.milliseconds),
            way.strategy,
            way.reason,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_migrate::ImageStrategy;

    #[test]
    fn an_image_of_which_only_the_configuration_came_was_not_there() {
        let brought = |there: bool| Brought {
            image: "app:1".into(),
            id: "sha256:1".into(),
            there,
            retagged: None,
            image_way: (!there).then(|| ImageWay {
                strategy: ImageStrategy::Layers,
                reason: "as asked for".into(),
            }),
            layers: 2,
            layers_sent: 0,
            bytes: 0,
            pushed_bytes: None,
            milliseconds: 1,
        };
        let (came, was) = (brought(false), brought(true));
        assert!(came.in_words("b").contains("0 of 2 layers sent"));
        assert!(came.in_words("b").ends_with("by layers: as asked for"));
        assert_eq!(was.in_words("b"), "app:1 → b: is there already");
        let was = serde_json::to_value(&was).unwrap();
        assert_eq!(was["there"], true);
        assert!(was.get("image_way").is_none(), "{was}");
        assert!(was.get("retagged").is_none(), "{was}");
        let mut was = brought(true);
        was.retagged = Some(Retagged {
            tag: "app:1".into(),
            before: "sha256:2".into(),
        });
        let words = "app:1 → b: is there already; app:1 meant sha256:2 there before";
        assert_eq!(was.in_words("b"), words);
    }
}
