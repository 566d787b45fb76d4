//! Names in JSON, as others read them: to Go, and so to Docker and containerd, `Layers` is `layers`, and the last one counts. What is read
//! here by one name and there by another would be compared here and loaded there.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The names that an object has which are read, and those within what they name.
#[derive(Debug)]
pub(crate) struct Names(&'static [(&'static str, Option<&'static Names>)]);

static PLATFORM: Names = Names(&[("architecture", None), ("os", None)]);

static DESCRIPTOR: Names = Names(&[
    ("mediaType", None),
    ("digest", None),
    ("size", None),
    ("urls", None),
    ("platform", Some(&PLATFORM)),
]);

/// Those of manifests and indexes.
pub(crate) static DOCUMENT: Names = Names(&[
    ("schemaVersion", None),
    ("mediaType", None),
    ("config", Some(&DESCRIPTOR)),
    ("layers", Some(&DESCRIPTOR)),
    ("manifests", Some(&DESCRIPTOR)),
    ("fsLayers", None),
]);

/// Those of configurations.
pub(crate) static CONFIG: Names = Names(&[
    ("architecture", None),
    ("os", None),
    ("rootfs", Some(&Names(&[("type", None), ("diff_ids", None)]))),
]);

/// Looks whether every name means the same to all who read it.
///
/// # Errors
/// That one does not, or that it is no JSON.
pub(crate) fn check(bytes: &[u8], names: &'static Names) -> Result<(), serde_json::Error> {
    serde_json::Deserializer::from_slice(bytes).deserialize_any(names)
}

/// As Go folds names: by the simple rules of Unicode, by which `ſ` is an `s` as well.
fn folded(name: &str) -> impl Iterator<Item = char> + '_ {
    name.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
}

impl<'de> DeserializeSeed<'de> for &'static Names {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &'static Names {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let meant = self.0.iter().find(|(name, _)| folded(name).eq(folded(&key)));
            match meant {
                Some((name, _)) if *name != key => {
                    return Err(A::Error::custom(format!(
                        "{key:?} would be read as {name:?} by others"
                    )));
                }
                Some((_, Some(within))) => map.next_value_seed(*within)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    // Whether something else may stand here is looked at where it is read.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_alone_are_refused() {
        for (names, text, fits) in [
            (
                &DOCUMENT,
                r#"{"layers":[{"digest":"a"}],"annotations":{"Layers":1,"SIZE":2}}"#,
                true,
            ),
            (
                &DOCUMENT,
                r#"{"config":null,"layers":7,"x":[[{"Layers":true}]]}"#,
                true,
            ),
            (&DOCUMENT, r#"{"layers":[],"Layers":[]}"#, false),
            (&DOCUMENT, r#"{"Layers":[]}"#, false),
            (&DOCUMENT, "{\"layer\u{17f}\":[]}", false),
            (&DOCUMENT, r#"{"layer\u017f":[]}"#, false),
            (&DOCUMENT, r#"{"fslayers":[]}"#, false),
            (&DOCUMENT, r#"{"mediatype":"x"}"#, false),
            (&DOCUMENT, r#"{"layers":[{"digest":"a"},{"Digest":"b"}]}"#, false),
            (&DOCUMENT, r#"{"config":{"digest":"a","SIZE":1}}"#, false),
            (&DOCUMENT, r#"{"manifests":[{"platform":{"OS":"linux"}}]}"#, false),
            (
                &CONFIG,
                r#"{"os":"linux","config":{"Labels":{"OS":"x"},"Env":["RootFS=1"]}}"#,
                true,
            ),
            (
                &CONFIG,
                r#"{"rootfs":{"type":"layers","diff_ids":[]},"RootFS":{}}"#,
                false,
            ),
            (&CONFIG, r#"{"rootfs":{"diff_ids":[],"Diff_IDs":[]}}"#, false),
            (&CONFIG, r#"{"Os":"linux"}"#, false),
        ] {
            assert_eq!(check(text.as_bytes(), names).is_ok(), fits, "{text}");
        }
    }
}
