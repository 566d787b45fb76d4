//! The unix socket of this node's own agent.
//!
//! Who may connect is decided twice: the socket's directory belongs to the agent's user alone, and the kernel says for
//! every connection which user is at the other end. A socket that a dead agent left behind is told from a living one
//! by a lock that the kernel takes back from the dead.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tranship_core::fault::{Explain, FaultKind};

use crate::identity::PeerIdentity;

/// The longest path that a unix socket may have.
const LONGEST_PATH: usize = 107;

/// This node's own agent was not reached, or cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// No agent runs.
    #[error("no agent listens at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// An agent runs already.
    #[error("an agent listens at {} already", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The directory could be changed by others.
    #[error("{} is not safe for a socket: {reason}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The path does not fit into a socket's address.
    #[error("{} is longer than the {LONGEST_PATH} bytes that a socket's path may have", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// Another user listens there.
    #[error("{} belongs to user {uid}, who is not us", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Explain for LocalError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotRunning { .. } => "wire.local-not-running",
            Self::InUse { .. } => "wire.local-in-use",
            Self::Unsafe { .. } => "wire.local-unsafe",
            Self::TooLong { .. } => "wire.local-path",
            Self::Stranger { .. } => "wire.local-stranger",
            Self::Io { .. } => "wire.local-io",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unsafe { path, .. } => Some(format!(
                "run `ls -ld {}`; nobody else may own it or write to it",
                path.display()
            )),
            Self::TooLong { .. } => Some("choose a shorter path for the agent's socket".into()),
            Self::NotRunning { .. } | Self::InUse { .. } | Self::Stranger { .. } | Self::Io { .. } => None,
        }
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Environment
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LocalError {
    let path = path.to_owned();
    move |source| LocalError::Io { action, path, source }
}

/// The user and the number of the process at the other end.
fn peer_of(stream: &UnixStream) -> io::Result<(u32, i32)> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok((peer.uid.as_raw(), peer.pid.as_raw_nonzero().get()))
}

fn trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Connects to the agent that listens at a path.
///
/// # Errors
/// [`LocalError::NotRunning`] if none does; [`LocalError::Stranger`] if it is another user's.
pub async fn connect(path: &Path) -> Result<UnixStream, LocalError> {
    check_length(path)?;
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LocalError::NotRunning {
                path: path.to_owned(),
            },
            _ => failed("connect to", path)(error),
        })?;
    let (uid, _) = peer_of(&stream).map_err(failed("ask for the user of", path))?;
    if !trusted(uid) {
        return Err(LocalError::Stranger {
            path: path.to_owned(),
            uid,
        });
    }
    Ok(stream)
}

fn check_length(path: &Path) -> Result<(), LocalError> {
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(LocalError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// The agent's end. The socket goes away with it; the lock file stays, for it must not be two files at once.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    _lock: OwnedFd,
}

impl LocalListener {
    /// Listens at a path, in a directory that is made if it is missing.
    ///
    /// # Errors
    /// [`LocalError::InUse`] if a living agent does so already; [`LocalError::Unsafe`] if others could put something
    /// else in the socket's place.
    pub async fn bind(path: &Path) -> Result<Self, LocalError> {
        check_length(path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        prepare(directory)?;
        let lock = lock(path)?;
        // Whoever holds no lock may still listen: another program, or an agent whose lock file was removed.
        match UnixStream::connect(path).await {
            Ok(_) => {
                return Err(LocalError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove_socket(path)?,
            Err(error) => return Err(failed("connect to", path)(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("listen at", path))?;
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed("set the permissions of", path)(error.into()))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Waits for the next connection of our own user or root. Others are turned away.
    ///
    /// # Errors
    /// When the system accepts no more connections.
    pub async fn accept(&self) -> Result<(UnixStream, PeerIdentity), LocalError> {
        loop {
            let (stream, _) = self
                .listener
                .accept()
                .await
                .map_err(failed("accept a connection at", &self.path))?;
            match peer_of(&stream) {
                Ok((uid, process)) if trusted(uid) => {
                    return Ok((stream, PeerIdentity::Local { uid, process }));
                }
                Ok((uid, _)) => tracing::warn!(uid, "turned away a connection of another user"),
                Err(error) => tracing::warn!(%error, "turned away a connection of nobody known"),
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // The lock is still held, so the socket is ours.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

fn prepare(directory: &Path) -> Result<(), LocalError> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .recursive(true)
        .create(directory)
        .map_err(failed("make the directory", directory))?;
    let stat = rustix::fs::statat(CWD, directory, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("look at", directory)(error.into()))?;
    let reason = if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        "it is not a directory, or only a link to one"
    } else if stat.st_uid != geteuid().as_raw() {
        "it belongs to another user"
    } else if stat.st_mode & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    Err(LocalError::Unsafe {
        path: directory.to_owned(),
        reason,
    })
}

fn lock(path: &Path) -> Result<OwnedFd, LocalError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(&lock_path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed("open", &lock_path)(error.into()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(LocalError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(failed("lock", &lock_path)(error.into())),
    }
}

/// Removes what a dead agent left; anything but a socket stays.
fn remove_socket(path: &Path) -> Result<(), LocalError> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("look at", path)(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let reason = "something that is no socket is in its place";
        return Err(LocalError::Unsafe {
            path: path.to_owned(),
            reason,
        });
    }
    std::fs::remove_file(path).map_err(failed("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn one_listens_and_our_own_user_gets_through() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/agent.sock");
        assert_eq!(connect(&path).await.unwrap_err().code(), "wire.local-not-running");
        let listener = LocalListener::bind(&path).await.unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);

        let mut near = connect(&path).await.unwrap();
        let (mut far, peer) = listener.accept().await.unwrap();
        assert_eq!(
            peer,
            PeerIdentity::Local {
                uid: geteuid().as_raw(),
                process: rustix::process::getpid().as_raw_nonzero().get(),
            }
        );
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');

        assert_eq!(
            LocalListener::bind(&path).await.unwrap_err().code(),
            "wire.local-in-use"
        );
        drop(listener);
        assert!(!path.exists());
        LocalListener::bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_agent_is_replaced_and_that_of_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        // A socket without a listener and without a lock is what a kill leaves.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        assert_eq!(connect(&path).await.unwrap_err().code(), "wire.local-not-running");
        drop(LocalListener::bind(&path).await.unwrap());
        // One that listens but has lost its lock file is left alone.
        let _foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(
            LocalListener::bind(&path).await.unwrap_err().code(),
            "wire.local-in-use"
        );
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_place_that_is_not_ours_alone_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(
            LocalListener::bind(&open.join("s")).await.unwrap_err().code(),
            "wire.local-unsafe"
        );

        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert_eq!(
            LocalListener::bind(&link.join("s")).await.unwrap_err().code(),
            "wire.local-unsafe"
        );

        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(LocalListener::bind(&file).await.is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");

        let long = directory.path().join("x".repeat(LONGEST_PATH));
        assert_eq!(
            LocalListener::bind(&long).await.unwrap_err().code(),
            "wire.local-path"
        );
    }
}
