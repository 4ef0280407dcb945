// SPDX-License-Identifier: Apache-2.0
//! One maintainer at a time looks after the tables, of all agents, engines and commands that may.

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::PgError;
use super::connect::{Role, Target};

/// Conflicts with itself, and with nothing that anybody else does to that table. Not an advisory lock: every login of the
/// database could hold one for ever, and this table is the maintainer's alone.
const TAKE: &str = "BEGIN; LOCK TABLE zt_audit._sqlx_migrations IN SHARE UPDATE EXCLUSIVE MODE NOWAIT";
/// What the server says when somebody else has it.
const TAKEN: &str = "55P03";

/// The turn of one maintainer: held as long as this lives and its connection does.
#[derive(Debug)]
pub struct Turn {
    connection: PgConnection,
}

impl Turn {
    /// Takes the turn, over a connection of its own; `None` while another maintainer has it. The tables must be there.
    pub async fn take(target: &Target) -> Result<Option<Self>, PgError> {
        let mut connection = target.connect(Role::Maintainer).await?;
        match sqlx::raw_sql(TAKE).execute(&mut connection).await {
            Ok(_) => Ok(Some(Self { connection })),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(TAKEN) => {
                connection.close().await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives it back.
    pub async fn give(self) -> Result<(), PgError> {
        Ok(self.connection.close().await?)
    }
}
