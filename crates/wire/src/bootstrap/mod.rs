//! Starts the agent at the other end of one `ssh`, and brings it there first if need be.
//!
//! A script of POSIX sh goes along as the command. It says what kind of machine it is on and which tranship is there,
//! waits for our decision, takes the binary from its standard input if it is to, and at last becomes the agent. All of
//! it runs over one connection, so a password is asked for once. An uploaded binary is kept in
//! `${XDG_CACHE_HOME:-~/.cache}/tranship/bin`, or in `/var/tmp/tranship-UID` where that is not possible, under a name
//! with its version and hash; it is hashed again whenever it is to run.

mod decide;
mod error;
mod script;

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use ring::rand::{SecureRandom, SystemRandom};
use semver::Version;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::time::timeout;

pub use decide::{Installed, Platform};
pub use error::BootstrapError;

use crate::error::{WireError, printable};
use crate::ssh::{SshDiagnostics, SshError, SshStream, SshTransport};
use decide::{Decision, Remote, decide};

/// How much a login shell may print of its own.
const NOISE: usize = 256 << 10;
/// How much of the binary is read and sent at once.
const PIECE: usize = 256 << 10;
/// The digits of the hash that are part of a cached binary's name.
const HASH_IN_NAME: usize = 16;

/// What to bring to the other end, and whether.
#[derive(Debug, Clone)]
pub struct BootstrapOptions {
    /// Our own version.
    pub version: String,
    /// The versions of the protocol that we speak.
    pub protocols: RangeInclusive<u32>,
    /// Our own binary.
    pub binary: PathBuf,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// The kind of machine that it runs on.
    pub platform: Platform,
    /// Never run an installed tranship, however new.
    pub force_own: bool,
    /// Never upload or run an uploaded one: what is installed has to do.
    pub no_bootstrap: bool,
    /// Further arguments for the agent.
    pub arguments: Vec<String>,
    /// How long the login may take, with the typing of a password.
    pub login_time: Duration,
    /// How long any later step may take; an upload may take as long as it moves.
    pub step_time: Duration,
    /// Where the directory for hosts without a usable home goes.
    pub fallback: String,
}

impl BootstrapOptions {
    /// The usual way: prefer what is installed, else bring our own.
    #[must_use]
    pub fn new(
        version: impl Into<String>,
        protocols: RangeInclusive<u32>,
        binary: PathBuf,
        sha256: impl Into<String>,
    ) -> Self {
        Self {
            version: version.into(),
            protocols,
            binary,
            sha256: sha256.into(),
            platform: Platform::here(),
            force_own: false,
            no_bootstrap: false,
            arguments: Vec::new(),
            login_time: Duration::from_secs(120),
            step_time: Duration::from_secs(60),
            fallback: "/var/tmp".into(),
        }
    }
}

/// How far a bootstrap has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootstrapEvent {
    /// The login worked.
    Connected {
        /// The kind of machine that is there.
        platform: Platform,
    },
    /// The binary is on its way.
    Uploading {
        /// Bytes sent so far.
        sent: u64,
        /// Bytes to send.
        total: u64,
    },
    /// The agent starts.
    Starting {
        /// Its binary there.
        path: String,
    },
}

/// Where the running agent's binary came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was installed there, in this version.
    Installed(Installed),
    /// It was uploaded before.
    Cached,
    /// It was uploaded just now.
    Uploaded {
        /// Its length.
        bytes: u64,
    },
}

/// The way to an agent at the other end of an `ssh`.
#[derive(Debug)]
pub struct AgentStream {
    rest: Bytes,
    ssh: SshStream,
    origin: Origin,
    path: String,
    platform: Platform,
}

impl AgentStream {
    /// Where the agent's binary came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The agent's binary at the other end.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The kind of machine that is there.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// What `ssh` says, which is also where the agent's standard error goes.
    #[must_use]
    pub fn diagnostics(&self) -> SshDiagnostics {
        self.ssh.diagnostics()
    }
}

/// Logs in and starts an agent.
///
/// # Errors
/// [`WireError::Ssh`] if the login fails, [`WireError::Bootstrap`] for everything after it.
pub async fn connect(
    ssh: &SshTransport,
    options: &BootstrapOptions,
    progress: &(dyn Fn(BootstrapEvent) + Send + Sync),
) -> Result<AgentStream, WireError> {
    let own = Version::parse(&options.version).map_err(|_| BootstrapError::Version {
        text: options.version.clone(),
    })?;
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if options.sha256.len() != 64 || !options.sha256.bytes().all(digit) {
        return Err(BootstrapError::Version {
            text: options.sha256.clone(),
        }
        .into());
    }
    let magic = magic()?;
    let command = script::command(&script::Parameters {
        magic: &magic,
        name: &format!("tranship-{own}-{}", &options.sha256[..HASH_IN_NAME]),
        hash: &options.sha256,
        fallback: &options.fallback,
        arguments: &options.arguments,
    })
    .map_err(|text| BootstrapError::Argument { text })?;

    let mut talk = Talk {
        stream: BufReader::new(ssh.open(&command)?),
        host: ssh.address.to_string(),
        magic,
        sha256: &options.sha256,
        noise: NOISE,
        heard: Vec::new(),
    };
    let remote = talk.hello(options).await?;
    tracing::debug!(host = talk.host, ?remote, "the script answers");
    progress(BootstrapEvent::Connected {
        platform: remote.platform.clone(),
    });
    let origin = match decide(&talk.host, &remote, &own, options)? {
        Decision::RunInstalled => {
            talk.tell("run-installed\n", options.step_time).await?;
            let installed = remote.installed.as_deref().and_then(Installed::parse);
            installed.map_or(Origin::Cached, Origin::Installed)
        }
        Decision::RunCached => {
            talk.tell("run-cached\n", options.step_time).await?;
            Origin::Cached
        }
        Decision::Upload => Origin::Uploaded {
            bytes: talk.upload(options, progress).await?,
        },
    };
    let path = talk
        .expect("run", "starting the agent", options.step_time)
        .await?;
    progress(BootstrapEvent::Starting { path: path.clone() });
    let rest = Bytes::copy_from_slice(talk.stream.buffer());
    let ssh = talk.stream.into_inner();
    Ok(AgentStream {
        rest,
        ssh,
        origin,
        path,
        platform: remote.platform,
    })
}

/// A word that nothing prints by accident.
fn magic() -> Result<String, WireError> {
    let mut nonce = [0; 16];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| crate::tls::TlsError::Random)?;
    Ok(format!("tranship-{}", crate::hex::encode(&nonce)))
}

/// The conversation with the script.
struct Talk<'a> {
    stream: BufReader<SshStream>,
    host: String,
    magic: String,
    sha256: &'a str,
    noise: usize,
    heard: Vec<u8>,
}

impl Talk<'_> {
    async fn hello(&mut self, options: &BootstrapOptions) -> Result<Remote, WireError> {
        const STEP: &str = "logging in";
        let (mut os, mut arch, mut installed, mut cached) = (String::new(), String::new(), None, None);
        loop {
            let (word, text) = self.line(STEP, options.login_time).await?;
            match word.as_str() {
                "os" => os = text,
                "arch" => arch = text,
                "installed" => installed = Some(text),
                "cached" => cached = Some(text),
                "decide" => break,
                _ => return Err(self.unexpected(STEP, &word, &text)),
            }
        }
        Ok(Remote {
            platform: Platform::from_uname(&os, &arch),
            installed,
            cached,
        })
    }

    async fn upload(
        &mut self,
        options: &BootstrapOptions,
        progress: &(dyn Fn(BootstrapEvent) + Send + Sync),
    ) -> Result<u64, WireError> {
        let unreadable = |source| BootstrapError::Binary {
            path: options.binary.clone(),
            source,
        };
        let mut file = File::open(&options.binary).await.map_err(unreadable)?;
        let total = file.metadata().await.map_err(unreadable)?.len();
        self.tell(&format!("upload {total} {}\n", self.sha256), options.step_time)
            .await?;
        self.expect("send", "preparing the upload", options.step_time)
            .await?;
        let mut piece = vec![0; PIECE];
        let mut sent = 0;
        progress(BootstrapEvent::Uploading { sent, total });
        while sent < total {
            let room = usize::try_from(total - sent).unwrap_or(PIECE).min(PIECE);
            let read = file.read(&mut piece[..room]).await.map_err(unreadable)?;
            if read == 0 {
                return Err(unreadable(io::ErrorKind::UnexpectedEof.into()).into());
            }
            self.send(&piece[..read], "uploading", options.step_time).await?;
            sent += read as u64;
            progress(BootstrapEvent::Uploading { sent, total });
        }
        self.expect("ready", "checking the upload", options.step_time)
            .await?;
        Ok(total)
    }

    async fn tell(&mut self, line: &str, time: Duration) -> Result<(), WireError> {
        self.send(line.as_bytes(), "starting the agent", time).await
    }

    /// Sends, and if that fails asks the script why.
    async fn send(&mut self, bytes: &[u8], step: &'static str, time: Duration) -> Result<(), WireError> {
        let stream = &mut self.stream;
        let sent = timeout(time, async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => {
                let (word, text) = self.line(step, time).await?;
                Err(self.unexpected(step, &word, &text))
            }
            Err(_) => Err(self.late(step, time)),
        }
    }

    async fn expect(
        &mut self,
        expected: &str,
        step: &'static str,
        time: Duration,
    ) -> Result<String, WireError> {
        let (word, text) = self.line(step, time).await?;
        if word == expected {
            Ok(text)
        } else {
            Err(self.unexpected(step, &word, &text))
        }
    }

    /// The next line of the script; what others print is skipped. An error that it reports comes out as one.
    async fn line(&mut self, step: &'static str, time: Duration) -> Result<(String, String), WireError> {
        let line = match timeout(time, self.own_line()).await {
            Err(_) => return Err(self.late(step, time)),
            Ok(Ok(line)) => line,
            Ok(Err(error)) => {
                // Before anything else: what ssh itself says about its end.
                return Err(match error.downcast::<SshError>() {
                    Ok(SshError::Ended { text, .. }) if !self.heard.is_empty() => {
                        self.no_shell(&format!("{} {text}", String::from_utf8_lossy(&self.heard)))
                    }
                    Ok(SshError::Ended {
                        text,
                        code: Some(1..=254),
                        ..
                    }) if step == "logging in" => self.no_shell(&text),
                    Ok(ssh) => ssh.into(),
                    Err(_) => self.no_shell(&String::from_utf8_lossy(&self.heard)),
                });
            }
        };
        let (word, text) = line.split_once(' ').unwrap_or((&line, ""));
        if word == "error" {
            let (code, text) = text.split_once(' ').unwrap_or((text, ""));
            return Err(BootstrapError::reported(&self.host, self.sha256, code, text).into());
        }
        Ok((word.to_owned(), text.to_owned()))
    }

    async fn own_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = self.noise as u64;
            let read = (&mut self.stream)
                .take(limit)
                .read_until(b'\n', &mut line)
                .await?;
            self.noise -= read.min(self.noise);
            if read == 0 || self.noise == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let own = line
                .strip_prefix(self.magic.as_bytes())
                .and_then(|rest| rest.strip_prefix(b" "));
            if let Some(own) = own {
                self.heard.clear();
                return Ok(String::from_utf8_lossy(own).trim_end().to_owned());
            }
            // Kept for the case that there is nothing else to tell.
            self.heard.extend(line.iter().take(1024));
            let surplus = self.heard.len().saturating_sub(4096);
            self.heard.drain(..surplus);
        }
    }

    fn late(&self, step: &'static str, after: Duration) -> WireError {
        BootstrapError::Timeout {
            host: self.host.clone(),
            step,
            after,
        }
        .into()
    }

    fn unexpected(&self, step: &'static str, word: &str, text: &str) -> WireError {
        let text = printable(&format!("{word} {text}"), 300);
        BootstrapError::Unexpected {
            host: self.host.clone(),
            step,
            text,
        }
        .into()
    }

    fn no_shell(&self, text: &str) -> WireError {
        if self.noise == 0 {
            return BootstrapError::Noise {
                host: self.host.clone(),
                limit: NOISE,
            }
            .into();
        }
        let text = printable(text, 300);
        let text = if text.is_empty() {
            "it ended without a word".to_owned()
        } else {
            text
        };
        BootstrapError::Shell {
            host: self.host.clone(),
            text,
        }
        .into()
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            return Pin::new(&mut self.ssh).poll_read(cx, buf);
        }
        let take = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..take]);
        self.rest.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.ssh).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.ssh).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.ssh.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ssh).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ssh).poll_shutdown(cx)
    }
}
