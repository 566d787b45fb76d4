//! Reading the engine's documents: what is missing or of another type reads as empty.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The value at `path`, keys from the outside in.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter()
        .fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

pub(crate) fn text(value: &Value, path: &[&str]) -> String {
    at(value, path).as_str().unwrap_or_default().to_owned()
}

pub(crate) fn flag(value: &Value, path: &[&str]) -> bool {
    at(value, path).as_bool().unwrap_or_default()
}

pub(crate) fn number(value: &Value, path: &[&str]) -> i64 {
    at(value, path).as_i64().unwrap_or_default()
}

pub(crate) fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    let list = at(value, path).as_array();
    list.into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

pub(crate) fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn entries<'a>(value: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, path).as_object().into_iter().flatten()
}

pub(crate) fn text_map(value: &Value, path: &[&str]) -> BTreeMap<String, String> {
    entries(value, path)
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// A copy of the object at `path`, an empty one if there is none.
pub(crate) fn object(value: &Value, path: &[&str]) -> Map<String, Value> {
    at(value, path).as_object().cloned().unwrap_or_default()
}

/// `null`, `""`, `0`, `false`, `[]` and `{}`: the engine's ways of saying that nothing was given.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}
