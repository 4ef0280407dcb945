// SPDX-License-Identifier: Apache-2.0
//! Where the API and health listen: TCP, and a Unix socket for the operator of this machine.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::Limits;
use super::handshake::Tls;

/// Who may open the socket: its owner and its group.
const SOCKET_MODE: u32 = 0o660;

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can be reached from elsewhere.
    #[error(
        "api.listen: {address} is not a loopback address: beyond this machine the API needs `api.tls` and `api.callers`"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The address is taken, or not one of this machine.
    #[error("{field}: cannot listen on {address}: {source}")]
    Listen {
        /// The key of the configuration.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("api.socket: cannot listen on {}: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Says whose TCP socket of this machine is connected from the first address to the second; `None` where nobody has it
/// open any more.
pub type OwnerOf = fn(SocketAddr, SocketAddr) -> io::Result<Option<u32>>;

/// A place that is listened at. Nothing is accepted before [`Endpoint::serve`].
#[derive(Debug)]
pub struct Endpoint {
    pub(super) listener: Listener,
    pub(super) tls: Option<Tls>,
    pub(super) limits: Limits,
    pub(super) owner_of: Option<OwnerOf>,
    address: Option<SocketAddr>,
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    /// The file is removed when the listener goes.
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "does its work when it is dropped")] SocketFile,
    ),
}

pub(super) enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The file of a socket, which goes with it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another agent may have taken its place.
        if inode(&self.path) == Some(self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the API's socket cannot be removed");
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                Ok(Stream::Tcp(stream, peer))
            }
            Self::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// Listens for the API: with TLS anywhere, without it on loopback only.
pub async fn bind_api(address: SocketAddr, tls: Option<Tls>) -> Result<Endpoint, ServeError> {
    if tls.is_none() && !address.ip().to_canonical().is_loopback() {
        return Err(ServeError::NotLoopback { address });
    }
    Endpoint::tcp("api.listen", address, tls).await
}

/// Listens for health and metrics.
pub async fn bind_health(address: SocketAddr) -> Result<Endpoint, ServeError> {
    Endpoint::tcp("api.health", address, None).await
}

/// Listens for the API on a Unix socket. One that nobody listens on any more is replaced.
pub async fn bind_socket(path: &Path) -> Result<Endpoint, ServeError> {
    let of = path.to_path_buf();
    let bound = tokio::task::spawn_blocking(move || socket(&of));
    let bound = bound.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let failed = |source| ServeError::Socket {
        path: path.to_path_buf(),
        source,
    };
    let (listener, file) = bound.map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok(Endpoint {
        listener: Listener::Unix(listener, file),
        tls: None,
        limits: Limits::default(),
        owner_of: None,
        address: None,
    })
}

fn socket(path: &Path) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let why = "something is there that is not a socket: remove it, or change api.socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Ok(_) if StdUnixStream::connect(path).is_ok() => {
            let why = "another agent listens there: stop it, or give this one another api.socket";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        _ => {}
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::create_dir_all(directory)?;
        // The socket has its own mode; whatever the agent's umask is, its group must get there.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    // Bound under another name until it has its mode: nobody connects before.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&new);
    let made: io::Result<_> = (|| {
        let listener = std::os::unix::net::UnixListener::bind(&new)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(SOCKET_MODE))?;
        let inode = fs::symlink_metadata(&new)?.ino();
        fs::rename(&new, path)?;
        Ok((listener, inode))
    })();
    if made.is_err() {
        // What matters is why it could not be made.
        let _ = fs::remove_file(&new);
    }
    let (listener, inode) = made?;
    let path = path.to_path_buf();
    Ok((listener, SocketFile { path, inode }))
}

impl Endpoint {
    async fn tcp(field: &'static str, address: SocketAddr, tls: Option<Tls>) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen {
            field,
            address,
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener: Listener::Tcp(listener),
            tls,
            limits: Limits::default(),
            owner_of: None,
            address: Some(address),
        })
    }

    /// The address, with the port that was chosen for port 0; `None` for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The same with a way to find out who comes over a loopback address. Without one the address is all that is known.
    #[must_use]
    pub fn with_owners(mut self, owner_of: OwnerOf) -> Self {
        self.owner_of = Some(owner_of);
        self
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}
