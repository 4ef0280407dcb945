// SPDX-License-Identifier: Apache-2.0
//! Who answers questions.

use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgPool, PgPoolOptions};

use super::connect::{MOST_SECONDS, Role, Target};
use super::sums::{self, Sums};
use super::{PgError, cut, graph, rules, select, traffic};
use crate::audit::query::{
    Begins, Cursor, Filter, Fold, Graph, GraphFilter, MAX_LIMIT, Page, RuleHits, Traffic,
};

/// Questions for pages at a time.
const PAGES: u32 = 4;
/// Questions for sums at a time: each may keep the server busy for seconds, and no page waits for one.
const SUMS: u32 = 2;
/// How long a connection may take to be free for the next question; one that takes longer is closed.
const READY: Duration = Duration::from_secs(5);

/// Answers questions.
#[derive(Debug, Clone)]
pub struct Reader {
    target: Target,
    pages: PgPool,
    sums: PgPool,
    most_rows: i64,
    most_kinds: u64,
    most_seconds: u64,
}

impl Reader {
    /// A reader that is not connected yet.
    pub fn new(target: Target) -> Self {
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .min_connections(0)
                .acquire_timeout(Duration::from_secs(5))
                // Of a question that was given up: whoever swallows all and never hangs up must not hold its place for ever.
                .after_release(|connection, _| {
                    Box::pin(async move {
                        let answered = tokio::time::timeout(READY, connection.ping()).await;
                        answered.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
                    })
                })
                .connect_lazy_with(target.options(Role::Reader))
        };
        Self {
            pages: pool(PAGES),
            sums: pool(SUMS),
            target,
            most_rows: cut::PAGE_ROWS,
            most_kinds: sums::MOST_KINDS,
            most_seconds: MOST_SECONDS,
        }
    }

    /// Bounds how many records are looked at for one page whose question does not ask for them; then the page ends early,
    /// and the next one goes on. Without this it is two million.
    #[must_use]
    pub fn looking_at_most(self, records: u32) -> Self {
        Self {
            most_rows: records.into(),
            ..self
        }
    }

    /// Lets what is added up take longer than the 10 seconds that a question has else: for a command, whose user sees that it works
    /// and ends it when he likes.
    #[must_use]
    pub fn adding_up_for(self, most: Duration) -> Self {
        Self {
            most_seconds: most.as_secs(),
            ..self
        }
    }

    /// Bounds how many kinds of connection of how many days the server adds up at a time. Without this it is 250,000.
    #[must_use]
    pub fn adding_up_at_most(self, kinds: u32) -> Self {
        Self {
            most_kinds: kinds.into(),
            ..self
        }
    }

    /// One page of records, newest first. `cursor` is the `next` of the page before; `limit` is at most [`MAX_LIMIT`].
    pub async fn query(&self, filter: &Filter, cursor: Option<Cursor>, limit: u32) -> Result<Page, PgError> {
        let limit = limit.clamp(1, MAX_LIMIT) as usize;
        let mut transaction = self.begin(&self.pages).await?;
        select::page(&mut transaction, filter, cursor, limit, self.most_rows)
            .await
            .map_err(|error| error.of_question(MOST_SECONDS))
    }

    /// Who talks to whom.
    pub async fn graph(&self, filter: &GraphFilter) -> Result<Graph, PgError> {
        let graph = async { graph::graph(self.sums(filter).await?, filter).await };
        graph.await.map_err(|error| error.of_question(self.most_seconds))
    }

    /// The connections of a range of hours, each counted once. `fold` says which addresses are one, and how many there may be.
    pub async fn traffic(&self, filter: &GraphFilter, fold: &Fold) -> Result<Traffic, PgError> {
        let traffic = async { traffic::traffic(self.sums(filter).await?, filter, fold).await };
        traffic
            .await
            .map_err(|error| error.of_question(self.most_seconds))
    }

    /// How often which rule decided in a range of hours, before and after policies began.
    pub async fn rules(&self, filter: &GraphFilter, begins: &Begins) -> Result<RuleHits, PgError> {
        let rules = async { rules::rules(self.sums(filter).await?, filter, begins).await };
        rules.await.map_err(|error| error.of_question(self.most_seconds))
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pages.close().await;
        self.sums.close().await;
    }

    /// Begins to add up.
    async fn sums(&self, filter: &GraphFilter) -> Result<Sums, PgError> {
        let bounds = (self.most_kinds, self.most_seconds);
        Sums::begin(self.begin(&self.sums).await?, filter, bounds).await
    }

    /// One moment of the trail for all statements of a question.
    async fn begin(&self, pool: &PgPool) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, PgError> {
        let begin = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        begin
            .await
            .map_err(|source| self.target.failed(Role::Reader, source))
    }
}
