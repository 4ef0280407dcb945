// SPDX-License-Identifier: Apache-2.0
//! Who stood behind which virtual address, on disk: an agent that starts again goes on with it until the API has been
//! heard, so that nothing is refused in between, and nothing is named otherwise than the kernel names it meanwhile.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Backend, Backends, Place};
use crate::identity::kept;

/// The file in the directory of the agent's state.
pub const FILE: &str = "services.json";
/// Most bytes that are read.
const MAX_BYTES: u64 = 64 << 20;

/// A place, the Services that it is of, and who is behind it.
pub type Recalled = (Place, Arc<str>, Backends);

#[derive(Serialize, Deserialize)]
struct Remembered {
    /// After another start of the machine nothing of it is in the kernel, and much may have changed.
    boot: String,
    trust_domain: String,
    places: Vec<Recalled>,
}

/// What was known when `path` was written. Nothing where it cannot be read: that costs the names of virtual addresses
/// until the API has been heard.
pub fn recall(path: &Path, trust_domain: &str) -> Vec<Recalled> {
    let Some(remembered) = kept::read::<Remembered>(path, MAX_BYTES, "services") else {
        return Vec::new();
    };
    let ours = |recalled: &Recalled| {
        recalled.2.iter().all(|(backend, _)| match backend {
            Backend::Workload(id) => id.trust_domain() == trust_domain,
            Backend::Entity(_) | Backend::Address(_) => true,
        })
    };
    if kept::boot().is_none_or(|boot| boot != remembered.boot) || remembered.trust_domain != trust_domain {
        return Vec::new();
    }
    remembered.places.into_iter().filter(ours).collect()
}

/// Replaces what `path` says. Only root may read it.
pub fn remember(path: &Path, trust_domain: &str, places: Vec<Recalled>) -> io::Result<()> {
    let remembered = Remembered {
        boot: kept::boot().unwrap_or_default(),
        trust_domain: trust_domain.to_owned(),
        places,
    };
    let text = serde_json::to_vec(&remembered)?;
    // Not synced: after a crash of the machine nothing in it would be true.
    kept::replace(path, &text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::IpAddr;

    use super::*;
    use crate::spiffe_id::SpiffeId;

    #[test]
    fn what_is_written_is_read_again_under_the_same_trust_domain() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        let id = SpiffeId::parse("spiffe://hanzo.ai/c/n/a").expect("literal");
        let place = Place {
            address: IpAddr::from([10, 96, 0, 1]),
            port: 80,
            protocol: 6,
        };
        let backends = Backends::from([
            (Backend::Workload(id), 8080),
            (Backend::Entity(4), 6443),
            (Backend::Address(IpAddr::from([203, 0, 113, 1])), 443),
        ]);
        let places = vec![(place, Arc::from("hanzo/web"), backends)];
        assert!(recall(&path, "hanzo.ai").is_empty());
        remember(&path, "hanzo.ai", places.clone()).expect("written");
        assert_eq!(recall(&path, "hanzo.ai"), places);
        assert!(recall(&path, "example.org").is_empty());
        fs::write(&path, "{").expect("written");
        assert!(recall(&path, "hanzo.ai").is_empty());
    }
}
