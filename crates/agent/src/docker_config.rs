//! Names and passwords of registries as docker keeps them: in its configuration file, or with a helper
//! (<https://docs.docker.com/reference/cli/docker/login/#credential-stores>). They are read when they are asked for and kept nowhere;
//! a helper hears on its standard input which ones are meant.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tranship_oci::client::{ClientError, Login, Logins};

/// How long a helper may take.
const HELPER: Duration = Duration::from_secs(30);

/// Largest configuration that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// What docker calls its own hub.
const HUB: &str = "https://index.docker.io/v1/";

/// What a helper says where it knows nothing.
const NOTHING: &str = "credentials not found";

/// What a helper gives for a name where the password is an identity token.
const TOKEN: &str = "<token>";

/// Docker's configuration, in a directory; none where there is no such directory.
#[derive(Debug, Clone, Default)]
pub struct DockerConfig(pub Option<PathBuf>);

#[async_trait]
impl Logins for DockerConfig {
    async fn login(&self, host: &str) -> Result<Option<Login>, ClientError> {
        let failed = |message: String| ClientError::Credentials {
            registry: host.to_owned(),
            message,
        };
        let Some(path) = self.0.as_ref().map(|directory| directory.join("config.json")) else {
            return Ok(None);
        };
        let text = match tokio::fs::metadata(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if metadata.len() > LARGEST => {
                return Err(failed(format!("{} is too large", path.display())));
            }
            _ => tokio::fs::read(&path).await,
        };
        let text = text.map_err(|error| failed(format!("{}: {error}", path.display())))?;
        // What is wrong with it is not said: it may be a part of a secret.
        let config: Value =
            serde_json::from_slice(&text).map_err(|_| failed(format!("{} is not JSON", path.display())))?;
        let helper = entry(&config, "credHelpers", host).and_then(Value::as_str);
        let helper = helper.or(config.get("credsStore").and_then(Value::as_str));
        if let Some(helper) = helper.filter(|helper| !helper.is_empty())
            && let Some(login) = ask(helper, host).await.map_err(failed)?
        {
            return Ok(Some(login));
        }
        match entry(&config, "auths", host) {
            None => Ok(None),
            Some(entry) => read(entry).ok_or_else(|| failed("docker's entry for it is damaged".into())),
        }
    }
}

/// What a map of the configuration says of a registry, by whichever of the names that docker has used for it.
fn entry<'a>(config: &'a Value, map: &str, host: &str) -> Option<&'a Value> {
    let map = config.get(map)?.as_object()?;
    let fits = |key: &&String| {
        let bare = key.split_once("://").map_or(key.as_str(), |(_, rest)| rest);
        let bare = bare.split('/').next().unwrap_or(bare);
        bare == host || (is_hub(host) && key.as_str() == HUB)
    };
    map.get(host)
        .or_else(|| map.iter().find(|(key, _)| fits(key)).map(|(_, value)| value))
}

fn is_hub(host: &str) -> bool {
    ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&host)
}

/// `None` for what makes no sense; nothing in it for an empty entry, as docker writes it beside a helper.
fn read(entry: &Value) -> Option<Option<Login>> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    // Docker writes a name without a password beside it.
    if !text("identitytoken").is_empty() {
        return Some(Some(Login::Identity(text("identitytoken").to_owned())));
    }
    if let (user @ [_, ..], password @ [_, ..]) = (text("username").as_bytes(), text("password").as_bytes()) {
        return Some(Some(Login::Password {
            user: String::from_utf8_lossy(user).into_owned(),
            password: String::from_utf8_lossy(password).into_owned(),
        }));
    }
    if text("auth").is_empty() {
        return Some(None);
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text("auth").trim())
        .ok()?;
    let pair = String::from_utf8(bytes).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some(Some(Login::Password {
        user: user.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    }))
}

/// Asks `docker-credential-HELPER get`.
async fn ask(helper: &str, host: &str) -> Result<Option<Login>, String> {
    // It becomes a part of the name of a program.
    if !helper
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    {
        return Err("the name of docker's helper for credentials is none".into());
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: std::io::Error| format!("{program} cannot be run: {error}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let server = if is_hub(host) { HUB } else { host };
    let asked = async {
        if let Some(mut input) = child.stdin.take() {
            // One that needs to read nothing may be gone already.
            let _ = input.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER, asked).await;
    let output = output
        .map_err(|_| format!("{program} does not answer"))?
        .map_err(failed)?;
    if !output.status.success() {
        let nothing = String::from_utf8_lossy(&output.stdout).contains(NOTHING);
        return if nothing {
            Ok(None)
        } else {
            Err(format!("{program} failed"))
        };
    }
    let answer: Value =
        serde_json::from_slice(&output.stdout).map_err(|_| format!("{program} answers no JSON"))?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
    let secret = text("Secret").to_owned();
    Ok(Some(match text("Username") {
        TOKEN => Login::Identity(secret),
        user => Login::Password {
            user: user.to_owned(),
            password: secret,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn login(config: &str, host: &str) -> Result<Option<Login>, ClientError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        DockerConfig(Some(directory.path().to_owned())).login(host).await
    }

    #[tokio::test]
    async fn what_docker_wrote_is_found() {
        let me = Login::Password {
            user: "me".into(),
            password: "se:cret".into(),
        };
        for (key, host) in [
            ("r:5000", "r:5000"),
            ("https://r:5000", "r:5000"),
            ("https://r:5000/v1/", "r:5000"),
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6c2U6Y3JldA=="}},"else":{{}}}}}}"#);
            assert_eq!(login(&config, host).await.unwrap(), Some(me.clone()), "{key}");
            assert_eq!(login(&config, "else").await.unwrap(), None);
            assert_eq!(login(&config, "r").await.unwrap(), None);
        }
        assert_eq!(login("{}", "r").await.unwrap(), None);
        let absent = DockerConfig(Some("/nowhere".into()));
        assert_eq!(absent.login("r").await.unwrap(), None);
        assert_eq!(DockerConfig::default().login("r").await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_identity_token_counts_for_more_than_the_name_beside_it() {
        let token = Some(Login::Identity("long".into()));
        for entry in [
            r#"{"identitytoken":"long"}"#,
            r#"{"auth":"MDAwMDo=","identitytoken":"long"}"#,
            r#"{"username":"me","password":"x","identitytoken":"long"}"#,
        ] {
            let config = format!(r#"{{"auths":{{"r":{entry}}}}}"#);
            assert_eq!(login(&config, "r").await.unwrap(), token, "{entry}");
        }
        let config = r#"{"auths":{"r":{"auth":"bWU6eA==","identitytoken":""}}}"#;
        let found = login(config, "r").await.unwrap();
        assert!(matches!(found, Some(Login::Password { user, .. }) if user == "me"));
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_said_without_its_secret() {
        for config in [
            r#"{"auths":{"r":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"r":{"auth":"secret!"}}}"#,
            r#"{"auths":{"r":{"auth":"secret"#,
            r#"{"credsStore":"../secret"}"#,
            r#"{"credHelpers":{"r":"no-such-helper"}}"#,
        ] {
            let error = login(config, "r").await.unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("secret") && !shown.contains("c2Vjc"), "{shown}");
        }
    }
}
