// SPDX-License-Identifier: Apache-2.0
//! Pairs of agents over real TCP and real TLS, with real certificates. What a kernel would be told is kept here instead.

mod crowds;
mod lies;
mod many;
mod pairs;
mod restarts;
mod trust;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zt_common::handshake::EPOCH_MASK;
use zt_common::siphash::Key;

use super::*;
use crate::identity::peers::{Identity, Local, Neighbour, Resident, Roster, Who};
use crate::spiffe_id::Pattern;
use crate::tls::Mutual;
use crate::tls::tests::{Authority, Issued};

/// Long enough for a machine that has much else to do.
const DEADLINE: Duration = Duration::from_secs(60);
const PATTERN: &str = "spiffe://hanzo.ai/zt-agent/nodes/{node}";

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://hanzo.ai/w/{name}")).expect("literal")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

/// What the kernel's maps would hold.
#[derive(Clone, Default)]
struct Kernel {
    at: BTreeMap<IpAddr, Located>,
    lives: HashMap<u32, Vec<String>>,
    verifies: HashMap<(u32, u64), (u64, Key)>,
    uses: HashMap<u32, (u64, Key)>,
    speaks: HashMap<u32, Vec<IpNet>>,
    /// Who says so of which address.
    claims: BTreeMap<(IpAddr, u32), Located>,
    refuses_keys: Arc<AtomicBool>,
}

impl Kernel {
    fn told(&mut self, told: Told) {
        match told {
            Told::Changed {
                node,
                addresses,
                identities,
            } => {
                for (address, located) in addresses {
                    match located {
                        Some(located) => self.claims.insert((address, node), located),
                        None => self.claims.remove(&(address, node)),
                    };
                    self.settle(address);
                }
                if let Some(identities) = identities {
                    let mut paths: Vec<String> = identities.iter().map(|id| id.path().to_owned()).collect();
                    paths.sort_unstable();
                    self.lives.insert(node, paths);
                }
            }
            Told::Verify {
                node,
                epoch,
                key,
                needed,
                done,
            } => {
                self.verifies.insert((node, epoch & EPOCH_MASK), (epoch, key));
                self.need(node, &needed);
                done.send(()).expect("somebody waits");
            }
            Told::Needed { node, needed } => self.need(node, &needed),
            // An answer that does not come is a key that the kernel has not taken.
            Told::Use { .. } if self.refuses_keys.load(Ordering::Relaxed) => {}
            Told::Use {
                node,
                epoch,
                key,
                done,
            } => {
                self.uses.insert(node, (epoch, key));
                done.send(()).expect("somebody waits");
            }
            Told::Speaks { node, networks } => {
                self.speaks.insert(node, networks);
            }
            Told::Forget { node } => self.forget(node),
            Told::Removed { node } => {
                self.forget(node);
                self.lives.remove(&node);
                self.speaks.remove(&node);
                let of_it = self.claims.keys().filter(|(_, of)| *of == node);
                let of_it: Vec<IpAddr> = of_it.map(|(address, _)| *address).collect();
                self.claims.retain(|(_, of), _| *of != node);
                for address in of_it {
                    self.settle(address);
                }
            }
        }
    }

    /// Whoever alone has an address is there.
    fn settle(&mut self, address: IpAddr) {
        let mut claims = self.claims.range((address, 0)..=(address, u32::MAX));
        let (first, second) = (claims.next(), claims.next());
        let Some((_, located)) = first else {
            self.at.remove(&address);
            return;
        };
        let mut located = located.clone();
        if second.is_some() {
            located.who = Who::Disputed;
        }
        self.at.insert(address, located);
    }

    fn need(&mut self, node: u32, places: &[u64]) {
        self.verifies
            .retain(|(of, place), _| *of != node || places.contains(place));
    }

    fn forget(&mut self, node: u32) {
        self.uses.remove(&node);
        self.verifies.retain(|(of, _), _| *of != node);
    }

    /// Who is at an address, in a word.
    fn who(&self, address: &str) -> Option<String> {
        self.at.get(&ip(address)).map(|located| match &located.who {
            Who::Workload(id) => id.path().to_owned(),
            Who::Silent(id) => format!("silent {}", id.path()),
            Who::Node => "node".to_owned(),
            Who::Nobody => "nobody".to_owned(),
            Who::Disputed => "disputed".to_owned(),
        })
    }
}

/// An agent's peers, without the agent.
struct Agent {
    name: String,
    address: String,
    health: Arc<Health>,
    kernel: watch::Receiver<Kernel>,
    local: watch::Sender<Option<Arc<Local>>>,
    certificates: watch::Sender<Arc<Option<Mutual>>>,
    roster: watch::Sender<Option<Arc<Roster>>>,
    memory: PathBuf,
    tasks: [JoinHandle<()>; 2],
}

impl Agent {
    /// What the kernel was told, as soon as that is so.
    async fn until(&self, what: &str, is_so: impl Fn(&Kernel) -> bool) -> Kernel {
        let mut kernel = self.kernel.clone();
        let waited = timeout(DEADLINE, kernel.wait_for(|kernel| is_so(kernel))).await;
        let Ok(kernel) = waited else {
            panic!(
                "{} waits in vain until {what}: {:?}",
                self.name,
                self.health.status()
            );
        };
        kernel.expect("the agent runs").clone()
    }

    async fn until_who(&self, address: &str, who: Option<&str>) -> Kernel {
        let what = format!("{address} is {who:?}");
        self.until(&what, |kernel| kernel.who(address).as_deref() == who)
            .await
    }

    /// How it stands, as soon as that is so.
    async fn until_status(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let status = self.health.status();
            if is_so(&status) {
                return status;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{} waits in vain until {what}: {status:?}",
                self.name
            );
            tokio::task::yield_now().await;
            // Not a wait for something: only no busy loop.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Says that these are at its addresses.
    fn says(&self, residents: &[(&str, &str)]) {
        self.local.send_replace(Some(local(residents, |_| None)));
    }

    /// Ends as an agent that is killed.
    fn kill(self) -> Kernel {
        let kernel = self.kernel.borrow().clone();
        self.tasks.iter().for_each(JoinHandle::abort);
        kernel
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn local(
    residents: &[(&str, &str)],
    svid: impl Fn(&str) -> Option<Arc<rustls::sign::CertifiedKey>>,
) -> Arc<Local> {
    let mut local = Local::default();
    for (address, name) in residents {
        let resident = Resident {
            address: ip(address),
            spiffe: id(name),
            incarnation: 1,
            silent: false,
        };
        local.residents.insert(resident.address, resident);
        let identity = Identity {
            spiffe: id(name),
            svid: svid(name),
        };
        local.identities.insert(id(name).text(), identity);
    }
    Arc::new(local)
}

/// Nodes `a`, `b`, `c` … that speak for 10.1.0.0/24, 10.2.0.0/24, 10.3.0.0/24 …
struct World {
    authority: Authority,
    directory: tempfile::TempDir,
    neighbours: Vec<Neighbour>,
    listeners: HashMap<String, std::net::TcpListener>,
    timing: Timing,
    hold: Duration,
    /// The agent whose kernel takes no key to send with, in the beginning.
    refuses_keys: Option<&'static str>,
}

impl World {
    /// Whose nodes may tell of these identities without SVIDs.
    fn new(names: &[&str], identities: &str) -> Self {
        let mut listeners = HashMap::new();
        let neighbours = names.iter().enumerate().map(|(index, name)| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.set_nonblocking(true).expect("set");
            let address = listener.local_addr().expect("bound").to_string();
            listeners.insert((*name).to_owned(), listener);
            let nets = [
                format!("10.{}.0.0/24", index + 1),
                format!("192.0.2.{}/32", index + 1),
            ];
            Neighbour {
                name: (*name).into(),
                address: address.into(),
                speaks_for: nets.iter().map(|net| net.parse().expect("literal")).collect(),
                created: 0,
                says: Vec::new(),
                identities: match identities {
                    "" => Vec::new(),
                    pattern => vec![Pattern::parse(pattern).expect("literal")],
                },
            }
        });
        Self {
            neighbours: neighbours.collect(),
            listeners,
            authority: Authority::new(),
            directory: tempfile::tempdir().expect("directory"),
            timing: Timing {
                beat: Duration::from_millis(200),
                // A loaded machine may be silent for a while.
                silence: Duration::from_secs(30),
                pauses: (Duration::from_millis(20), Duration::from_millis(200)),
                save: Duration::from_millis(20),
                ..Timing::default()
            },
            hold: Duration::from_secs(3600),
            refuses_keys: None,
        }
    }

    fn agent_id(node: &str) -> String {
        PATTERN.replace("{node}", node)
    }

    fn certificate(&self, node: &str) -> Issued {
        self.authority.issue(&[&Self::agent_id(node)])
    }

    fn roster(&self, own: &str) -> Roster {
        Roster::new(self.neighbours.iter().cloned(), PATTERN, own, &[]).expect("a roster")
    }

    fn address(&self, node: &str) -> String {
        let found = self.neighbours.iter().find(|neighbour| &*neighbour.name == node);
        found.expect("a node").address.to_string()
    }

    fn start(&self, node: &str, uses: HashMap<u32, u64>) -> Agent {
        self.start_among(node, self.roster(node), uses)
    }

    /// One that knows of these nodes.
    fn start_among(&self, node: &str, known: Roster, uses: HashMap<u32, u64>) -> Agent {
        self.start_with(node, Some(known), Some(Arc::default()), uses)
    }

    /// One that may not know yet which other nodes there are, nor who is on its own.
    fn start_with(
        &self,
        node: &str,
        known: Option<Roster>,
        here: Option<Arc<Local>>,
        uses: HashMap<u32, u64>,
    ) -> Agent {
        let listener = self.listeners.get(node).expect("a node");
        let listener = listener.try_clone().expect("a descriptor");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let (certificates, shown) =
            watch::channel(Arc::new(Some(self.authority.mutual(&self.certificate(node)))));
        let (local, own) = watch::channel(here);
        let (roster, others) = watch::channel(known.map(Arc::new));
        let (out, mut said) = mpsc::channel(4);
        let health = Arc::new(Health::default());
        let memory = self.directory.path().join(format!("{node}.json"));
        let service = Service::new(Parts {
            settings: Settings {
                node: node.into(),
                trust_domain: "hanzo.ai".to_owned(),
                proves: true,
                hold: self.hold,
                memory: memory.clone(),
                timing: self.timing,
            },
            roster: others,
            uses,
            certificates: shown,
            local: own,
            out,
            health: Arc::clone(&health),
        });
        let mut start = Kernel::default();
        let refuses = self.refuses_keys == Some(node);
        start.refuses_keys.store(refuses, Ordering::Relaxed);
        let recalled = service.recalled();
        for (address, located) in recalled.addresses.clone() {
            start.claims.insert((address, located.node), located);
            start.settle(address);
        }
        start.speaks.clone_from(&recalled.networks);
        let (sender, kernel) = watch::channel(start);
        let following = tokio::spawn(async move {
            while let Some(told) = said.recv().await {
                sender.send_modify(|kernel| kernel.told(told));
            }
        });
        Agent {
            name: node.to_owned(),
            address: self.address(node),
            health,
            kernel,
            local,
            certificates,
            roster,
            memory,
            tasks: [tokio::spawn(service.run(listener)), following],
        }
    }
}
