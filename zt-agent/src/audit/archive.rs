// SPDX-License-Identifier: Apache-2.0
//! Where the trail is kept, as `audit.dsn` says: in a local file, or in `PostgreSQL` behind a [`Spool`].

mod error;
mod hits;
mod upkeep;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::error::ArchiveError;
pub use self::upkeep::keep;
use super::names::Named;
use super::postgres::{self, Target};
use super::query::{Begins, Cursor, Filter, Graph, GraphFilter, Page, RuleHits, Traffic};
use super::record::Entry;
use super::seal::Checkpoint;
use super::spool::{Account, Shipper, Spool, WhenFull};
use super::sqlite::{self, Store};
use super::store::{Pruned, PutAside, RingMark, Sink};

/// How long connections to a server may take to end.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the configuration says of the trail.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `sqlite://…` or `postgres://…`.
    pub dsn: String,
    /// The spool's file; used with `PostgreSQL` alone.
    pub spool: PathBuf,
    /// Most bytes on the local disk.
    pub max_disk_bytes: u64,
    /// Percent of that which evaluations over the API may take.
    pub api_share: u8,
    /// What goes when the spool is full.
    pub when_full: WhenFull,
    /// Days after which records go.
    pub retention_days: u32,
    /// Directory of the keys; `None`: `keys` beside the local file.
    pub keys: Option<PathBuf>,
    /// When what is in the local file is safe from a crash of the machine.
    pub sync: sqlite::Durability,
}

/// Whether a DSN is one of `PostgreSQL`.
pub fn is_postgres(dsn: &str) -> bool {
    dsn.starts_with("postgres://") || dsn.starts_with("postgresql://")
}

/// An open trail.
#[derive(Debug)]
pub enum Archive {
    /// In a file of this machine.
    Local(Box<Store>),
    /// On a server.
    Shared(Box<Shared>),
}

/// A trail on a server.
#[derive(Debug)]
pub struct Shared {
    spool: Arc<Spool>,
    reader: postgres::Reader,
    target: Target,
    retention_days: u32,
    keys: PathBuf,
}

impl Archive {
    /// Opens what the settings say. The server need not be there.
    pub async fn open(settings: Settings) -> Result<Self, ArchiveError> {
        let target = is_postgres(&settings.dsn)
            .then(|| Target::parse(&settings.dsn))
            .transpose()?;
        let dsn = match &target {
            Some(_) => format!("sqlite://{}", settings.spool.display()),
            None => settings.dsn,
        };
        let keys = match settings.keys {
            Some(keys) => keys,
            None => sqlite::default_keys(&sqlite::Reader::path(&dsn)?),
        };
        let local = sqlite::Settings {
            dsn,
            max_disk_bytes: settings.max_disk_bytes,
            retention_days: Some(settings.retention_days),
            keys: Some(keys.clone()),
            sync: settings.sync,
        };
        let archive = match target {
            None => Self::Local(Box::new(Store::open(local).await?)),
            Some(target) => Self::Shared(Box::new(Shared {
                spool: Arc::new(Spool::open(local, settings.when_full).await?),
                reader: postgres::Reader::new(target.clone()),
                target,
                retention_days: settings.retention_days,
                keys,
            })),
        };
        archive.file().limit_evaluations(settings.api_share);
        Ok(archive)
    }

    /// Starts what works beside the recorder: shipping, and looking after the tables where the login may. It ends some
    /// seconds after `stopping` says so; to be told when the recorder has ended.
    pub fn start(&self, stopping: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
        match self {
            Self::Local(_) => Vec::new(),
            Self::Shared(shared) => {
                let shipper =
                    Shipper::new(Arc::clone(&shared.spool), shared.target.clone(), stopping.clone());
                let upkeep = upkeep::look_after(
                    shared.target.clone(),
                    shared.retention_days,
                    shared.keys.clone(),
                    stopping.clone(),
                );
                vec![tokio::spawn(shipper.run()), tokio::spawn(upkeep)]
            }
        }
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Local(store) => store.path().display().to_string(),
            Self::Shared(shared) => format!("PostgreSQL at {}", shared.target.place()),
        }
    }

    /// The spool's numbers, where there is one.
    pub fn spool(&self) -> Option<&Arc<Account>> {
        match self {
            Self::Local(_) => None,
            Self::Shared(shared) => Some(shared.spool.account()),
        }
    }

    /// One page of records, newest first: of all that is stored here, also of what waits to be shipped, and of all that
    /// the server has from others.
    pub async fn query(
        &self,
        filter: &Filter,
        cursor: Option<Cursor>,
        limit: u32,
    ) -> Result<Page, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.query(filter, cursor, limit).await?,
            Self::Shared(shared) => {
                // The spool first: what leaves it meanwhile has arrived, and is found by the second question.
                let waiting = shared.spool.store().query(filter, cursor, limit).await?;
                let arrived = shared.reader.query(filter, cursor, limit).await?;
                arrived.joined(waiting, limit)
            }
        })
    }

    /// Who talks to whom.
    pub async fn graph(&self, filter: &GraphFilter) -> Result<Graph, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.graph(filter).await?,
            Self::Shared(shared) => shared.reader.graph(filter).await?,
        })
    }

    /// The connections of a range of hours, each counted once; at most so many different ones.
    pub async fn traffic(&self, filter: &GraphFilter, most: usize) -> Result<Traffic, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.traffic(filter, most).await?,
            Self::Shared(shared) => shared.reader.traffic_up_to(filter, most).await?,
        })
    }

    /// How often which rule decided in a range of hours. What one of a policy that began since did is told apart from what
    /// others of its name did before.
    pub async fn rules(&self, filter: &GraphFilter, begins: &Begins) -> Result<RuleHits, ArchiveError> {
        let mut counted = match self {
            Self::Local(store) => store.rules(filter, begins).await?,
            Self::Shared(shared) => shared.reader.rules(filter, begins).await?,
        };
        hits::tell_apart(self, begins, &mut counted).await?;
        Ok(counted)
    }

    /// Waits until what is stored here is in the [`Self::graph`]: the server counts it, so a spool's records have to
    /// reach it.
    pub async fn settle(&self) {
        if let Self::Shared(shared) = self {
            shared.spool.shipped_so_far().await;
        }
    }

    /// Names that earlier runs remembered, the most recent first, at most `limit`.
    pub async fn remembered(&self, limit: usize) -> Result<Vec<Named>, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.remembered(limit).await?,
            Self::Shared(shared) => shared.spool.remembered(limit).await?,
        })
    }

    /// The last checkpoint that this machine's trail signed, in whatever run.
    pub async fn last_checkpoint(&self) -> Result<Option<Checkpoint>, ArchiveError> {
        Ok(self.file().last_checkpoint().await?)
    }

    /// Up to where the ring buffer is accounted for.
    pub async fn ring_mark(&self) -> Result<Option<RingMark>, ArchiveError> {
        Ok(self.file().ring_mark().await?)
    }

    /// Digest of the policy in force that this machine's trail told last; `None` in a new trail.
    pub async fn policy_told(&self) -> Result<Option<String>, ArchiveError> {
        Ok(self.file().policy_told().await?)
    }

    /// Digest of the policy whose change this machine's trail has told, and that had not come into force by then.
    pub async fn policy_late(&self) -> Result<Option<String>, ArchiveError> {
        Ok(self.file().policy_late().await?)
    }

    /// Notes that the change to this policy is told and will come into force some time.
    pub async fn note_late(&self, digest: &str) -> Result<(), ArchiveError> {
        Ok(self.file().note_late(digest).await?)
    }

    /// Notes the digest of the policy that a new trail begins with, or that was told before it came into force.
    pub async fn note_policy(&self, digest: &str) -> Result<(), ArchiveError> {
        Ok(self.file().note_policy(digest).await?)
    }

    /// Closes the file and the connections. What [`Archive::start`] started must have ended.
    pub async fn close(self) -> Result<(), ArchiveError> {
        match self {
            Self::Local(store) => store.close().await?,
            Self::Shared(shared) => {
                // A server that does not answer is not waited for.
                let _ = tokio::time::timeout(GOODBYE, shared.reader.close()).await;
                if let Some(spool) = Arc::into_inner(shared.spool) {
                    spool.close().await?;
                }
            }
        }
        Ok(())
    }

    /// The local file.
    fn file(&self) -> &Store {
        match self {
            Self::Local(store) => store,
            Self::Shared(shared) => shared.spool.store(),
        }
    }
}

impl From<Store> for Archive {
    fn from(store: Store) -> Self {
        Self::Local(Box::new(store))
    }
}

impl Sink for Archive {
    type Error = ArchiveError;

    async fn append(&self, entries: &[Entry], mark: Option<RingMark>) -> Result<(), ArchiveError> {
        match self {
            Self::Local(store) => store.append(entries, mark).await?,
            Self::Shared(shared) => shared.spool.append(entries, mark).await?,
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), ArchiveError> {
        match self {
            Self::Local(store) => store.sync().await?,
            Self::Shared(shared) => shared.spool.sync().await?,
        }
        Ok(())
    }

    async fn remember(&self, names: &[Named]) -> Result<(), ArchiveError> {
        match self {
            Self::Local(store) => store.remember(names).await?,
            Self::Shared(shared) => shared.spool.remember(names).await?,
        }
        Ok(())
    }

    async fn prune(&self) -> Result<Pruned, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.prune().await?,
            Self::Shared(shared) => shared.spool.prune().await?,
        })
    }

    fn takes_evaluations(&self) -> bool {
        self.file().takes_evaluations()
    }

    async fn seal(&self) -> Result<Option<Checkpoint>, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.seal().await?,
            Self::Shared(shared) => shared.spool.seal().await?,
        })
    }

    fn breaks(&self) -> Result<u64, ArchiveError> {
        Ok(self.file().breaks()?)
    }

    fn put_aside(&self) -> PutAside {
        match self {
            Self::Local(store) => store.put_aside(),
            Self::Shared(shared) => shared.spool.put_aside(),
        }
    }

    fn damaged(&self) -> Result<u64, ArchiveError> {
        Ok(self.file().damaged()?)
    }
}
