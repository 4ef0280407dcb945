// SPDX-License-Identifier: Apache-2.0
//! The agents of other nodes, as far as they talk to one another: all of them in this process.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use zt_agent::identity::peers::{Identity, Local, Neighbour, Resident, Roster};
use zt_agent::peers::{Health, PROTOCOL, Parts, Service, Settings, Timing, Told};
use zt_agent::spiffe_id::SpiffeId;
use zt_agent::tls;
use zt_tests::nodes::{Authority, PATTERN};

use super::entry;
use crate::world::id;

/// Addresses of each of them.
pub(super) const EACH: usize = 100;
/// Identities of each of them.
const IDENTITIES: usize = 20;

/// One of them.
struct Other {
    name: String,
    number: usize,
    certificates: tls::Certificates,
    /// Keeps the certificates. Nobody follows the files: so many would leave the agents no inotify instances.
    _shown: watch::Sender<Arc<Option<tls::Mutual>>>,
}

/// All of them.
pub(super) struct Others {
    runtime: Runtime,
    all: Vec<Other>,
    memory: PathBuf,
    roster: Arc<Roster>,
    kept: Vec<watch::Sender<Option<Arc<Local>>>>,
}

impl Others {
    /// Agents of `count` nodes that know one other, which listens there.
    pub(super) fn new(authority: &Authority, directory: &Path, count: usize, z: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut others = Vec::new();
        for number in 0..count {
            let name = format!("n{number:04}");
            let material = tls::Material::read(&authority.certify(&name)?)?;
            let (shown, certificates) = watch::channel(Arc::new(Some(tls::mutual(material, PROTOCOL)?)));
            others.push(Other {
                name,
                number,
                certificates,
                _shown: shown,
            });
        }
        let neighbour = Neighbour {
            name: "z".into(),
            address: z.to_string().into(),
            speaks_for: vec!["10.201.0.0/24".parse()?],
            created: 0,
            says: Vec::new(),
            identities: Vec::new(),
        };
        Ok(Self {
            runtime,
            all: others,
            memory: directory.to_owned(),
            roster: Arc::new(Roster::new([neighbour], PATTERN, "others", &[])?),
            kept: Vec::new(),
        })
    }

    /// How the node that they talk to lists them.
    pub(super) fn entries(&self) -> Vec<Value> {
        let net = |other: &Other| format!("10.{}.{}.0/24", other.number / 250, other.number % 250);
        let entry = |other: &Other| entry(&other.name, "127.0.0.1:9", &net(other));
        self.all.iter().map(entry).collect()
    }

    /// Has all of them dial it, and say who is there.
    pub(super) fn start(mut self) -> Result<Self> {
        for other in &self.all {
            let (local, own) = watch::channel(Some(Arc::new(residents(other.number)?)));
            let (out, mut told) = mpsc::channel(16);
            let service = Service::new(Parts {
                settings: Settings {
                    node: other.name.as_str().into(),
                    trust_domain: "hanzo.ai".to_owned(),
                    proves: true,
                    hold: Duration::from_secs(300),
                    memory: self.memory.join(format!("{}.json", other.name)),
                    timing: Timing::default(),
                },
                roster: watch::channel(Some(Arc::clone(&self.roster))).1,
                uses: HashMap::new(),
                certificates: other.certificates.clone(),
                local: own,
                out,
                health: Arc::new(Health::default()),
            });
            // Nobody dials it.
            let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
            self.runtime.spawn(service.run(listener));
            self.runtime.spawn(async move {
                while let Some(told) = told.recv().await {
                    if let Told::Verify { done, .. } | Told::Use { done, .. } = told {
                        // The connection may have ended.
                        let _ = done.send(());
                    }
                }
            });
            self.kept.push(local);
        }
        Ok(self)
    }

    /// The address that each says last.
    pub(super) fn last_of_each(&self) -> Vec<IpAddr> {
        self.all.iter().map(|other| address(other.number, EACH)).collect()
    }
}

fn address(number: usize, last: usize) -> IpAddr {
    IpAddr::from([10, (number / 250) as u8, (number % 250) as u8, last as u8])
}

fn residents(number: usize) -> Result<Local> {
    let mut local = Local::default();
    for last in 1..=EACH {
        let spiffe = SpiffeId::parse(&id(&format!("w{}", (number + last) % (IDENTITIES * 5))))?;
        let resident = Resident {
            address: address(number, last),
            spiffe: spiffe.clone(),
            incarnation: last as u64,
            silent: false,
        };
        local.residents.insert(resident.address, resident);
        local
            .identities
            .insert(spiffe.text(), Identity { spiffe, svid: None });
    }
    Ok(local)
}
