//! One request to a registry, until there is an answer to it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::time::timeout;

use super::auth::{Challenge, Login, secret};
use super::{BadCertificates, BodyStream, Client, ClientError, Payload};
use crate::document::media;

/// How often a request is led on.
const REDIRECTS: usize = 5;

/// How often a request is sent again with other credentials.
const AUTHORIZATIONS: usize = 2;

/// How long to wait at least, and where a busy registry does not say.
const SHORT: Duration = Duration::from_secs(1);

/// Largest answer of an error or of a server of tokens that is read, in bytes.
const LARGEST_NOTE: usize = 1 << 20;

/// What a request for a token is called in errors.
const TOKEN: &str = "a request for a token";

/// A question to a registry.
pub(super) struct Ask {
    pub(super) method: Method,
    /// From `/v2` on, or the URL that the registry gave.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What it is called in errors.
    pub(super) what: String,
    /// For tokens: `repository:NAME:pull`.
    pub(super) scope: String,
    /// How long the answer may take, where that is not as usual.
    pub(super) pause: Option<Duration>,
}

impl Ask {
    pub(super) fn new(method: Method, path: String, what: impl Into<String>, scope: &str) -> Self {
        Self {
            method,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            what: what.into(),
            scope: scope.to_owned(),
            pause: None,
        }
    }

    /// Of documents, those that are understood are asked for.
    pub(super) fn accept_documents(&mut self) {
        for kind in [
            media::MANIFEST,
            media::DOCKER_MANIFEST,
            media::INDEX,
            media::DOCKER_LIST,
        ] {
            self.headers
                .append(header::ACCEPT, HeaderValue::from_static(kind));
        }
    }

    /// Says that a blob is asked for as a configuration, as containerd does. Few look at it.
    pub(super) fn accept_config(&mut self) {
        for kind in [media::CONFIG, media::DOCKER_CONFIG, "*/*"] {
            self.headers
                .append(header::ACCEPT, HeaderValue::from_static(kind));
        }
    }
}

impl Client {
    /// Asks, with what the registry wants to see first, following where it leads and waiting where it is busy. Any status but those
    /// of these is an answer.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Response<BodyStream>, ClientError> {
        let mut uri = self.uri(&ask.path, &ask.what)?;
        // An upload may be elsewhere.
        let own = self.uri("/v2/", &ask.what)?.authority().cloned();
        let (mut redirects, mut waited, mut shown) = (0, Duration::ZERO, 0);
        loop {
            let at_home = uri.authority() == own.as_ref();
            let mut request = Request::new(Payload::Full(ask.body.clone()));
            *request.method_mut() = ask.method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = ask.headers.clone();
            // Nobody but the registry itself is shown what is meant for it.
            let credentials = self.auth.get(&ask.scope).filter(|_| at_home);
            if let Some(credentials) = &credentials {
                request
                    .headers_mut()
                    .insert(header::AUTHORIZATION, credentials.clone());
            }
            let pause = ask.pause.unwrap_or(self.patience.pause);
            let response = self.exchange(request, pause).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED if at_home => {
                    // What was right may have run out; what was got for this very request, and is refused, is wrong.
                    shown += 1;
                    if shown > AUTHORIZATIONS {
                        return Err(self.denied(ask));
                    }
                    let value = self.authorize(&response.into_parts().0.headers, ask).await?;
                    if shown > 1 && credentials.as_ref() == Some(&value) {
                        return Err(self.denied(ask));
                    }
                    self.auth.set(&ask.scope, value);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(ask)),
                StatusCode::TOO_MANY_REQUESTS => {
                    let after = retry_after(response.headers()).unwrap_or(SHORT).max(SHORT);
                    waited = waited.saturating_add(after);
                    if waited > self.patience.busy {
                        return Err(ClientError::Busy {
                            registry: self.name(),
                            after,
                        });
                    }
                    tokio::time::sleep(after).await;
                }
                status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                    redirects += 1;
                    uri = self.led(&uri, &response, redirects, ask)?;
                }
                _ => return Ok(response),
            }
        }
    }

    /// Sends a body that cannot be sent twice, with what was found to be right before. `taken` counts what the registry took of it: a body that
    /// stands still is given up as an answer is that does not come.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        scope: &str,
        what: &str,
        (body, taken): (Payload, &AtomicU64),
    ) -> Result<Response<BodyStream>, ClientError> {
        let length = match &body {
            Payload::Full(bytes) => bytes.len() as u64,
            Payload::Stream { length, .. } => *length,
        };
        let uri = self.uri(path, what)?;
        let own = self.uri("/v2/", what)?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        if uri.authority() == own.authority()
            && let Some(credentials) = self.auth.get(scope)
        {
            request.headers_mut().insert(header::AUTHORIZATION, credentials);
        }
        *request.uri_mut() = uri;
        // How long all of it takes to go out is not known.
        let sent = self.transport.send(request);
        tokio::pin!(sent);
        let mut before = taken.load(Ordering::Relaxed);
        loop {
            // Once it has everything it may have to compare and move it.
            let patience = if before < length {
                self.patience.pause
            } else {
                self.patience.document
            };
            match timeout(patience, &mut sent).await {
                Ok(sent) => return sent.map_err(|error| self.unsent(&error)),
                Err(_) => {
                    let now = taken.load(Ordering::Relaxed);
                    if now == before {
                        return Err(self.lost(&"nothing more is taken, and no answer came"));
                    }
                    before = now;
                }
            }
        }
    }

    async fn exchange(
        &self,
        request: Request<Payload>,
        pause: Duration,
    ) -> Result<Response<BodyStream>, ClientError> {
        match timeout(pause, self.transport.send(request)).await {
            Ok(sent) => sent.map_err(|error| self.unsent(&error)),
            Err(_) => Err(self.lost(&"no answer came")),
        }
    }

    /// Why there is no answer to what was sent.
    fn unsent(&self, error: &std::io::Error) -> ClientError {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<BadCertificates>())
        {
            Some(bad) => ClientError::Certificates {
                registry: self.name(),
                message: bad.to_string(),
            },
            None => self.lost(error),
        }
    }

    pub(super) fn lost(&self, message: &dyn std::fmt::Display) -> ClientError {
        ClientError::Lost {
            registry: self.name(),
            message: message.to_string(),
        }
    }

    fn denied(&self, ask: &Ask) -> ClientError {
        ClientError::Denied {
            registry: self.name(),
            what: ask.what.clone(),
        }
    }

    pub(super) fn nonsense(&self, what: &str, message: impl Into<String>) -> ClientError {
        ClientError::Answer {
            registry: self.name(),
            what: what.to_owned(),
            message: message.into(),
        }
    }

    /// The address of a path, or a whole address that the registry gave, if it is guarded as the registry is.
    pub(super) fn uri(&self, path: &str, what: &str) -> Result<Uri, ClientError> {
        let whole = match path.starts_with('/') {
            true => format!("{}{path}", self.address.base()),
            false => path.to_owned(),
        };
        let uri: Uri = whole
            .parse()
            .map_err(|_| self.nonsense(what, "it names no address"))?;
        match uri.scheme_str() {
            Some("https") => Ok(uri),
            Some("http") if !self.address.is_secure() => Ok(uri),
            _ => Err(ClientError::Insecure {
                registry: self.name(),
                to: uri.authority().map(ToString::to_string).unwrap_or_default(),
            }),
        }
    }

    fn led(
        &self,
        from: &Uri,
        response: &Response<BodyStream>,
        times: usize,
        ask: &Ask,
    ) -> Result<Uri, ClientError> {
        let location = text(response.headers(), &header::LOCATION)
            .ok_or_else(|| self.nonsense(&ask.what, "it leads on, and does not say where"))?;
        if times > REDIRECTS || !(ask.method == Method::GET || ask.method == Method::HEAD) {
            return Err(ClientError::Redirects {
                registry: self.name(),
                // Its query may hold a signature.
                message: format!(
                    "{} from {}",
                    ask.what,
                    from.authority().map_or("nowhere", |host| host.as_str())
                ),
            });
        }
        // A path is meant at the host that gave it.
        let scheme = from.scheme_str().unwrap_or("https");
        let host = from.authority().map(ToString::to_string).unwrap_or_default();
        let whole = match location {
            other if other.starts_with("//") => format!("{scheme}:{other}"),
            path if path.starts_with('/') => format!("{scheme}://{host}{path}"),
            whole => whole.to_owned(),
        };
        self.uri(&whole, &ask.what)
    }

    /// What the registry wants to see, as the value of a header.
    async fn authorize(&self, headers: &HeaderMap, ask: &Ask) -> Result<HeaderValue, ClientError> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| value.to_str().ok())
            .find_map(Challenge::read)
            .ok_or_else(|| self.denied(ask))?;
        let login = self.logins.login(self.address.host()).await?;
        match challenge {
            Challenge::Basic => login
                .and_then(|login| login.header())
                .ok_or_else(|| self.denied(ask)),
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let asked = scope.as_deref().unwrap_or_default().split_whitespace();
                let scopes: BTreeSet<&str> = ask.scope.split_whitespace().chain(asked).collect();
                let request = self.token_request(&realm, service.as_deref(), &scopes, login)?;
                self.token(request, ask).await
            }
        }
    }

    /// A request for a token: with a name and a password or nothing in a header, or with an identity token in a form.
    fn token_request(
        &self,
        realm: &str,
        service: Option<&str>,
        scopes: &BTreeSet<&str>,
        login: Option<Login>,
    ) -> Result<Request<Payload>, ClientError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        if let Some(service) = service {
            form.append_pair("service", service);
        }
        let mut request = Request::new(Payload::Full(Bytes::new()));
        let at = match &login {
            Some(Login::Identity(token)) => {
                form.append_pair("grant_type", "refresh_token");
                form.append_pair("refresh_token", token);
                form.append_pair("client_id", "tranship");
                let scopes: Vec<&str> = scopes.iter().copied().collect();
                form.append_pair("scope", &scopes.join(" "));
                *request.method_mut() = Method::POST;
                *request.body_mut() = Payload::Full(form.finish().into());
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                request.headers_mut().insert(header::CONTENT_TYPE, kind);
                realm.to_owned()
            }
            _ => {
                for scope in scopes {
                    form.append_pair("scope", scope);
                }
                let joint = if realm.contains('?') { '&' } else { '?' };
                format!("{realm}{joint}{}", form.finish())
            }
        };
        let uri = self.uri(&at, TOKEN)?;
        let own = self.uri("/v2/", TOKEN)?;
        // A password goes without TLS to the address that was given so, and nowhere else.
        if login.is_some() && uri.scheme_str() == Some("http") && uri.authority() != own.authority() {
            return Err(ClientError::Insecure {
                registry: self.name(),
                to: uri.authority().map(ToString::to_string).unwrap_or_default(),
            });
        }
        *request.uri_mut() = uri;
        if let Some(basic) = login.and_then(|login| login.header()) {
            request.headers_mut().insert(header::AUTHORIZATION, basic);
        }
        Ok(request)
    }

    async fn token(&self, request: Request<Payload>, ask: &Ask) -> Result<HeaderValue, ClientError> {
        let response = self.exchange(request, self.patience.pause).await?;
        if !response.status().is_success() {
            return Err(self.denied(ask));
        }
        let bytes = self.gather(response.into_body(), TOKEN, LARGEST_NOTE).await?;
        let document: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|_| self.nonsense(TOKEN, "not JSON"))?;
        let token = ["token", "access_token"]
            .iter()
            .find_map(|key| document.get(*key).and_then(serde_json::Value::as_str))
            .ok_or_else(|| self.nonsense(TOKEN, "no token came"))?;
        secret(&format!("Bearer {token}")).ok_or_else(|| self.nonsense(TOKEN, "the token is none"))
    }

    /// The whole body, if it is not longer than `limit`.
    pub(super) async fn gather(
        &self,
        mut body: BodyStream,
        what: &str,
        limit: usize,
    ) -> Result<Bytes, ClientError> {
        let mut bytes = BytesMut::new();
        loop {
            match timeout(self.patience.pause, body.next()).await {
                Err(_) => return Err(self.lost(&"nothing came for too long")),
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Err(error))) => return Err(self.lost(&error)),
                Ok(Some(Ok(piece))) if bytes.len() + piece.len() > limit => {
                    return Err(ClientError::TooLarge {
                        registry: self.name(),
                        what: what.to_owned(),
                        limit: limit as u64,
                    });
                }
                Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
            }
        }
    }

    /// The error that an answer is which was not expected.
    pub(super) async fn refusal(&self, response: Response<BodyStream>, what: &str) -> ClientError {
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return ClientError::NotFound {
                registry: self.name(),
                what: what.to_owned(),
            };
        }
        let note = self.gather(response.into_body(), what, LARGEST_NOTE).await;
        let said = note
            .ok()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
            .and_then(|document| {
                let first = document.get("errors")?.get(0)?;
                let message = first.get("message").and_then(serde_json::Value::as_str);
                Some(message.or(first.get("code")?.as_str())?.to_owned())
            });
        let message = said.map(|said| {
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            format!(": {said}")
        });
        ClientError::Status {
            registry: self.name(),
            what: what.to_owned(),
            status: status.as_u16(),
            message: message.unwrap_or_default(),
        }
    }
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Seconds; the other form, a date, would need a clock on the wall.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, &header::RETRY_AFTER)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
