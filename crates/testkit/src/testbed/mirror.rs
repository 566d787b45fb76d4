//! Finds the Debian mirror in the host's own apt configuration.
//!
//! Both forms are read: `*.sources` (fields) and `*.list` (one line per source), as well as lists of mirrors that
//! either form points to with `mirror+file:`.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// Suites that tell a Debian archive from those of other projects.
const SUITES: [&str; 9] = [
    "bookworm",
    "trixie",
    "forky",
    "bullseye",
    "sid",
    "stable",
    "testing",
    "unstable",
    "oldstable",
];

/// One archive: where it is and what is taken from it.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
}

/// The mirror the host installs Debian from.
///
/// # Errors
///
/// [`Error::NoMirror`] when no source below `apt` (usually `/etc/apt`) is a Debian archive.
pub(crate) fn find(apt: &Path) -> Result<String> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(parse_fields(&text)),
            Some("list") => sources.extend(parse_lines(&text)),
            _ => {}
        }
    }
    choose(&sources, |path| fs::read_to_string(path).ok()).ok_or_else(|| Error::NoMirror(apt.to_owned()))
}

fn choose(sources: &[Source], read: impl Fn(&Path) -> Option<String>) -> Option<String> {
    sources
        .iter()
        .filter(|source| SUITES.contains(&source.suite.as_str()))
        .filter(|source| source.components.iter().any(|component| component == "main"))
        .find_map(|source| resolve(&source.uri, &read))
}

/// Turns `mirror+file:` into the first mirror of that file; schemes debootstrap doesn't know are passed over.
fn resolve(uri: &str, read: impl Fn(&Path) -> Option<String>) -> Option<String> {
    if let Some(path) = uri.strip_prefix("mirror+file:") {
        let path = format!("/{}", path.trim_start_matches('/'));
        let list = read(Path::new(&path))?;
        return list
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .find(|uri| !uri.starts_with('#') && usable(uri))
            .map(str::to_owned);
    }
    usable(uri).then(|| uri.trim_end_matches('/').to_owned())
}

fn usable(uri: &str) -> bool {
    ["http://", "https://", "file:"]
        .iter()
        .any(|scheme| uri.starts_with(scheme))
}

fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(rest) = line.trim().strip_prefix("deb ") else {
            continue;
        };
        let rest = match rest.trim_start().strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            sources.push(Source {
                uri,
                suite,
                components: words.collect(),
            });
        }
    }
    sources
}

fn parse_fields(text: &str) -> Vec<Source> {
    // A comment line is no end of a paragraph.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text = lines.map(str::trim_end).collect::<Vec<_>>().join("\n");
    text.split("\n\n").flat_map(parse_paragraph).collect()
}

fn parse_paragraph(paragraph: &str) -> Vec<Source> {
    let mut fields: Vec<(String, Vec<String>)> = Vec::new();
    for line in paragraph.lines() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        if line.starts_with([' ', '\t']) {
            if let Some((_, values)) = fields.last_mut() {
                values.extend(words(line));
            }
        } else if let Some((name, values)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), words(values)));
        }
    }
    let get = |name: &str| {
        fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, values)| values.clone())
            .unwrap_or_default()
    };
    let disabled = get("enabled")
        .iter()
        .any(|value| value.eq_ignore_ascii_case("no"));
    if disabled || !get("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let (suites, components) = (get("suites"), get("components"));
    get("uris")
        .into_iter()
        .flat_map(|uri| {
            let components = components.clone();
            suites.clone().into_iter().map(move |suite| Source {
                uri: uri.clone(),
                suite,
                components: components.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Path) -> Option<String> {
        None
    }

    #[test]
    fn reads_fields() {
        let text = "# a comment\nTypes: deb deb-src\n# in between\nURIs: http://mirror.example/debian/\n\
                    Suites: bookworm\n bookworm-updates\nComponents: main\n\nTypes: deb\n\
                    URIs: https://tool.example/repo\nSuites: nodistro\nComponents: main\n";
        assert_eq!(
            choose(&parse_fields(text), nothing).as_deref(),
            Some("http://mirror.example/debian")
        );
    }

    #[test]
    fn passes_over_what_is_no_debian_archive() {
        let text = "deb https://tool.example/apt tool-bookworm main\n\
                    # deb http://old.example/debian bookworm main\n\
                    deb [signed-by=/k.gpg arch=amd64] http://other.example/debian bookworm-security main\n\
                    deb cdrom:[Debian 12]/ bookworm main\n\
                    deb [signed-by=/k.gpg] http://good.example/debian bookworm main contrib # yes\n";
        assert_eq!(
            choose(&parse_lines(text), nothing).as_deref(),
            Some("http://good.example/debian")
        );
    }

    #[test]
    fn follows_a_list_of_mirrors() {
        let text = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n";
        let read = |path: &Path| {
            (path == Path::new("/etc/apt/mirrors/debian.list")).then(|| {
                "# comment\nhttps://first.example/debian priority:1\nhttps://second.example\n".to_owned()
            })
        };
        assert_eq!(
            choose(&parse_fields(text), read).as_deref(),
            Some("https://first.example/debian")
        );
    }

    #[test]
    fn disabled_sources_do_not_count() {
        let text = "Enabled: no\nTypes: deb\nURIs: http://a.example/\nSuites: trixie\nComponents: main\n";
        assert_eq!(choose(&parse_fields(text), nothing), None);
    }
}
