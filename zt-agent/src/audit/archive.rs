// SPDX-License-Identifier: Apache-2.0
//! Where the trail is kept, as `audit.dsn` says: in a local file, or in `PostgreSQL` behind a [`Spool`].

mod error;
mod hits;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use self::error::ArchiveError;
pub use self::upkeep::keep;
use super::intent::{Intent, Progress};
use super::names::Named;
use super::postgres::{self, Target, Targets};
use super::query::{Begins, Cursor, Filter, Fold, Graph, GraphFilter, Page, RuleHits, Traffic};
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
    /// The server with the login that answers questions; `None`: that of [`Self::dsn`].
    pub read_dsn: Option<String>,
    /// The server with the login that looks after the tables; `None`: that of [`Self::dsn`].
    pub maintain_dsn: Option<String>,
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
    /// Of the login that inserts.
    target: Target,
    maintainer: Target,
    /// It has a login of its own, which is to look after the tables.
    maintainer_is_named: bool,
    retention_days: u32,
    keys: PathBuf,
}

impl Archive {
    /// Opens what the settings say. The server need not be there.
    pub async fn open(settings: Settings) -> Result<Self, ArchiveError> {
        let targets = is_postgres(&settings.dsn)
            .then(|| {
                Targets::parse(
                    &settings.dsn,
                    settings.read_dsn.as_deref(),
                    settings.maintain_dsn.as_deref(),
                )
            })
            .transpose()?;
        let dsn = match &targets {
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
        let archive = match targets {
            None => Self::Local(Box::new(Store::open(local).await?)),
            Some(targets) => Self::Shared(Box::new(Shared {
                spool: Arc::new(Spool::open(local, settings.when_full).await?),
                reader: postgres::Reader::new(targets.reader),
                target: targets.writer,
                maintainer: targets.maintainer,
                maintainer_is_named: settings.maintain_dsn.is_some(),
                retention_days: settings.retention_days,
                keys,
            })),
        };
        archive.file().limit_evaluations(settings.api_share);
        Ok(archive)
    }

    /// Whether others record there, too.
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
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
                    (shared.maintainer.clone(), shared.maintainer_is_named),
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

    /// The connections of a range of hours, each counted once. `fold` says which addresses are one, and how many there may be.
    pub async fn traffic(&self, filter: &GraphFilter, fold: &Fold) -> Result<Traffic, ArchiveError> {
        Ok(match self {
            Self::Local(store) => store.traffic(filter, fold).await?,
            Self::Shared(shared) => shared.reader.traffic(filter, fold).await?,
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

    /// Notes a change of policy that is about to be made; it is forgotten when its record is stored.
    pub async fn note_intent(&self, intent: &Intent) -> Result<(), ArchiveError> {
        match self {
            Self::Local(store) => store.note_intent(intent).await?,
            Self::Shared(shared) => shared.spool.note_intent(intent).await?,
        }
        Ok(())
    }

    /// Marks how far a change that was noted has come.
    pub async fn mark_intent(&self, id: Uuid, progress: Progress) -> Result<(), ArchiveError> {
        Ok(self.file().mark_intent(id, progress).await?)
    }

    /// The changes of policy that were noted and are not recorded, the oldest first.
    pub async fn intents(&self) -> Result<Vec<Intent>, ArchiveError> {
        Ok(self.file().intents().await?)
    }

    /// Forgets a change that was not made, whether it was noted or not.
    pub async fn forget_intent(&self, id: Uuid) -> Result<(), ArchiveError> {
        Ok(self.file().forget_intent(id).await?)
    }

    /// The file on this machine: of the trail, or of the spool.
    pub fn local(&self) -> &Path {
        self.file().path()
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
