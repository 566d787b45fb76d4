//! What an engine holds, as lines that can be compared.

use super::error::Result;
use super::node::Node;
use super::options::Engine;

/// One line per container, image, network and volume. Networks that the engine makes itself appear without their
/// ids, which change with every start of the engine.
pub(crate) fn take(node: &Node) -> Result<Vec<String>> {
    let engine = node.engine();
    let text = node.sh(&script(engine))?;
    let mut lines: Vec<String> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .map(|line| {
            if is_predefined(line) {
                without_id(line)
            } else {
                line.to_owned()
            }
        })
        .collect();
    lines.sort();
    lines.dedup();
    Ok(lines)
}

fn script(engine: Engine) -> String {
    let client = engine.client();
    let (image, network, policy) = match engine {
        Engine::Docker => (
            "{{.Repository}}:{{.Tag}} {{.ID}}",
            "{{.Name}} {{.Driver}} {{.ID}}",
            "{{.HostConfig.RestartPolicy.Name}}",
        ),
        Engine::Podman => (
            "{{.Repository}}:{{.Tag}} {{.Id}}",
            "{{.Name}} {{.Driver}} {{.ID}}",
            "{{.HostConfig.RestartPolicy.Name}}",
        ),
    };
    // A container removed while it is looked at is simply not listed.
    format!(
        r#"set -e
ids=$({client} ps --all --quiet --no-trunc)
[ -z "$ids" ] || {client} inspect --type container --format 'container {{{{.Name}}}} {{{{.Id}}}} {{{{.Image}}}} {{{{.State.Status}}}} restart={policy}' $ids || true
{client} images --all --no-trunc --format 'image {image}'
{client} network ls --no-trunc --format 'network {network}'
{client} volume ls --format 'volume {{{{.Name}}}} {{{{.Driver}}}}'
"#
    )
}

/// Whether a line is about a network every engine has.
fn is_predefined(line: &str) -> bool {
    ["bridge", "host", "none", "podman"].iter().any(|name| {
        line.strip_prefix("network ")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with(' '))
    })
}

fn without_id(line: &str) -> String {
    line.rsplit_once(' ').map_or(line, |(rest, _)| rest).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_predefined_networks_lose_their_id() {
        assert!(is_predefined("network bridge bridge 0123"));
        assert!(!is_predefined("network bridge2 bridge 0123"));
        assert!(!is_predefined("volume host local"));
        assert_eq!(without_id("network bridge bridge 0123"), "network bridge bridge");
    }
}
