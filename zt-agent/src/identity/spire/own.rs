// SPDX-License-Identifier: Apache-2.0
//! The agent's own SVID, from the Workload API, as files that whoever needs a certificate follows: the API, the way to a
//! policy engine, PostgreSQL.
//!
//! A set of certificate, key and bundle is one directory; `current` points to the newest, so that no reader finds parts of
//! two. They belong below `/run`, which is in memory.

mod health;

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use spiffe::x509_source::SvidPicker;
use spiffe::{TrustDomain, X509Source, X509Svid};
use tokio::time::sleep;

use self::health::Recorder;
pub use self::health::{Health, Status};
use super::rights::SocketError;
use super::svid::HINT;
use crate::tls;

/// The certificate and what leads up to the root.
pub const CERT: &str = "cert.pem";
/// Its private key.
pub const KEY: &str = "key.pem";
/// The authorities of the trust domain.
pub const BUNDLE: &str = "bundle.pem";
/// The link to the newest set.
pub const CURRENT: &str = "current";

/// Pauses between attempts at reaching the SPIRE agent.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between attempts after an answer that does not get better by waiting.
const PAUSE: Duration = Duration::from_secs(30);
/// How long to wait before a set is written again that could not be.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
enum OwnError {
    #[error("{0}")]
    Source(#[from] spiffe::X509SourceError),
    #[error("SPIRE sends no bundle of the trust domain `{0}`: `trustDomain` must be the SPIRE agent's")]
    NoBundle(String),
    #[error(
        "SPIRE calls this agent `{id}`, which is not in the trust domain `{domain}`: `trustDomain` must be the SPIRE agent's"
    )]
    Foreign { id: String, domain: String },
    #[error("cannot write {directory}: {source}")]
    Write { directory: PathBuf, source: io::Error },
}

/// Keeps the files below `directory` what SPIRE says of this process, for ever, and `health` how that stands.
pub async fn keep(socket: PathBuf, trust_domain: String, directory: PathBuf, health: Arc<Health>) {
    loop {
        let error = match follow(&socket, &trust_domain, &directory, &health).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        health.failed(&error.to_string());
        tracing::error!(%error, "SPIRE gives this agent no certificate");
        sleep(PAUSE).await;
    }
}

enum Never {}

async fn follow(
    socket: &Path,
    trust_domain: &str,
    directory: &Path,
    health: &Arc<Health>,
) -> Result<Never, OwnError> {
    tracing::info!(socket = %socket.display(), "asking SPIRE for the certificate of this agent");
    let source = X509Source::builder()
        .endpoint(format!("unix://{}", socket.display()))
        .picker(Hinted)
        .reconnect_backoff(FIRST_PAUSE, LONGEST_PAUSE)
        .metrics(Arc::new(Recorder(Arc::clone(health))))
        .build()
        .await?;
    let mut updates = source.updated();
    loop {
        let written = match set(&source, trust_domain) {
            Ok(set) => {
                let to = directory.to_path_buf();
                let taken = (set.id.clone(), set.expires);
                let written = tokio::task::spawn_blocking(move || set.write(&to)).await;
                written
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
                    .map(|()| taken)
                    .map_err(|source| OwnError::Write {
                        directory: directory.to_path_buf(),
                        source,
                    })
            }
            Err(error) => Err(error),
        };
        match written {
            Ok((id, expires)) => {
                health.renewed(&id, expires);
                tracing::info!(spiffe = %id, "a new certificate of this agent");
                updates.changed().await?;
            }
            // What is there stays until it expires; whoever is shown it then refuses it.
            Err(error) => {
                if health.failed(&error.to_string()) {
                    tracing::warn!(%error, "the certificate of this agent is not renewed");
                }
                tokio::select! {
                    changed = updates.changed() => { changed?; }
                    () = sleep(WRITE_AGAIN) => {}
                }
            }
        }
    }
}

/// Asks the Workload API once who this process is: its SPIFFE ID, and when its certificate, or what that rests on, ends (Unix
/// seconds).
pub async fn ask(socket: &Path, trust_domain: &str, patience: Duration) -> Result<(String, i64), String> {
    let asked = async {
        // Said by the system, and not by the library on its way through many attempts.
        tokio::net::UnixStream::connect(socket).await.map_err(|error| {
            let (path, error) = (socket.display(), SocketError::of(socket, error));
            format!(
                "the socket {path} of the Workload API cannot be reached (`identity.spireSocket`): {error}"
            )
        })?;
        let source = X509Source::builder()
            .endpoint(format!("unix://{}", socket.display()))
            .picker(Hinted)
            .build()
            .await
            .map_err(|error| error.to_string())?;
        let set = set(&source, trust_domain).map_err(|error| error.to_string())?;
        Ok((set.id, set.expires))
    };
    let late = |_| {
        Err(format!(
            "the Workload API has not said who this process is within {patience:?}"
        ))
    };
    tokio::time::timeout(patience, asked).await.unwrap_or_else(late)
}

/// The hint of the SVID that says which node this agent is on, by which policy engines know whose reports they hear. That of the
/// agent's pod is [`HINT`], and all agents of a cluster may share it.
pub const NODE_HINT: &str = "zt-node";

/// The SVID that is shown: the one with the hint [`NODE_HINT`], else the first one with [`HINT`], else the first one. Another
/// one that this process has may bear no names of hosts, or be nobody's who may come to where it is shown.
struct Hinted;

impl SvidPicker for Hinted {
    fn pick_svid(&self, svids: &[Arc<X509Svid>]) -> Option<usize> {
        let with = |hint| svids.iter().position(|svid| svid.hint() == Some(hint));
        with(NODE_HINT)
            .or_else(|| with(HINT))
            .or((!svids.is_empty()).then_some(0))
    }
}

/// Certificate, key and bundle that belong together.
struct Set {
    id: String,
    /// When it, or what it rests on, ends to be valid; Unix seconds.
    expires: i64,
    cert: String,
    key: String,
    bundle: String,
}

fn set(source: &X509Source, trust_domain: &str) -> Result<Set, OwnError> {
    let svid = source.svid()?;
    let no_bundle = || OwnError::NoBundle(trust_domain.to_owned());
    let domain = TrustDomain::new(trust_domain).map_err(|_| no_bundle())?;
    // Nobody who goes by this configuration would believe it.
    if *svid.spiffe_id().trust_domain() != domain {
        return Err(OwnError::Foreign {
            id: svid.spiffe_id().to_string(),
            domain: trust_domain.to_owned(),
        });
    }
    let bundle = source
        .try_bundle_for_trust_domain(&domain)
        .ok_or_else(no_bundle)?;
    let all = |certificates: &[spiffe::cert::Certificate]| -> String {
        certificates
            .iter()
            .map(|certificate| pem("CERTIFICATE", certificate.as_bytes()))
            .collect()
    };
    let chain = svid.cert_chain().iter();
    let chain: Vec<CertificateDer<'_>> = chain.map(|each| each.as_bytes().into()).collect();
    Ok(Set {
        id: svid.spiffe_id().to_string(),
        expires: tls::expires(&chain),
        cert: all(svid.cert_chain()),
        key: pem("PRIVATE KEY", svid.private_key().as_bytes()),
        bundle: all(bundle.authorities()),
    })
}

impl Set {
    /// Writes it below `directory`, and then points `current` to it.
    fn write(&self, directory: &Path) -> io::Result<()> {
        let private =
            |path: &Path, recursive| DirBuilder::new().recursive(recursive).mode(0o700).create(path);
        private(directory, true)?;
        let current = directory.join(CURRENT);
        let before = fs::read_link(&current).ok();
        let number = before
            .as_deref()
            .and_then(Path::to_str)
            .and_then(|name| name.parse::<u64>().ok());
        let name = number.map_or(0, |number| number.wrapping_add(1)).to_string();
        let new = directory.join(&name);
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        private(&new, false)?;
        for (file, text) in [(CERT, &self.cert), (KEY, &self.key), (BUNDLE, &self.bundle)] {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(new.join(file))?;
            file.write_all(text.as_bytes())?;
        }
        let link = directory.join("next");
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        symlink(&name, &link)?;
        fs::rename(&link, &current)?;
        // Whoever has found the last one may be reading it.
        let last = before.unwrap_or_default();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let old = entry.file_name();
            let is_set = old.to_str().is_some_and(|name| name.parse::<u64>().is_ok());
            if is_set && *old != *name && *old != *last.as_os_str() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// RFC 7468: 64 characters a line.
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    for start in (0..encoded.len()).step_by(64) {
        let line = encoded.get(start..(start + 64).min(encoded.len()));
        let _ = writeln!(text, "{}", line.unwrap_or_default());
    }
    let _ = writeln!(text, "-----END {label}-----");
    text
}

#[cfg(test)]
mod tests;
