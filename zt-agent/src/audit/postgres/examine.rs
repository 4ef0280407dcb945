// SPDX-License-Identifier: Apache-2.0
//! Looks at a server as each role would, and changes nothing.

use sqlx::Connection as _;

use super::PgError;
use super::connect::{Role, Target};
use crate::audit::clock;

/// The server's clock, Unix nanoseconds; whether the tables are there; and which settings are off.
const LOOK: &str = "SELECT (date_part('epoch', clock_timestamp()) * 1e9::double precision)::bigint,
    to_regclass('zt_audit.record') IS NOT NULL,
    ARRAY(SELECT name FROM pg_catalog.pg_settings
          WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name)";

/// What was found of a server.
#[derive(Debug)]
pub struct Examined {
    /// Each role by name: whether this login may take it, or why not.
    pub roles: Vec<(&'static str, Result<(), PgError>)>,
    /// Nanoseconds by which the server's clock is ahead of this machine's; `None` where nobody could ask.
    pub ahead: Option<i64>,
    /// Whether the tables are there.
    pub tables: bool,
    /// The settings that are off without which a crash of the server's machine takes what the server has confirmed: `fsync`,
    /// `full_page_writes`. Empty also where nobody could ask.
    pub off: Vec<String>,
}

impl Examined {
    /// Why this login may not take a role; `None` where it may.
    pub fn refusal(&self, role: &str) -> Option<&PgError> {
        let found = self.roles.iter().find(|(name, _)| *name == role)?;
        found.1.as_ref().err()
    }
}

/// Connects in each of the three roles. Where the server cannot be reached in the first, it is not tried again.
pub async fn examine(target: &Target) -> Examined {
    let mut examined = Examined {
        roles: Vec::new(),
        ahead: None,
        tables: false,
        off: Vec::new(),
    };
    for role in [Role::Writer, Role::Reader, Role::Maintainer] {
        let looked = look(target, role).await;
        let unreachable = looked
            .as_ref()
            .is_err_and(|error| matches!(error.cause(), "unreachable" | "slow"));
        if let Ok((ahead, tables, off)) = &looked {
            examined.ahead = Some(*ahead);
            examined.tables |= tables;
            examined.off.clone_from(off);
        }
        examined.roles.push((role.name(), looked.map(drop)));
        if unreachable {
            break;
        }
    }
    examined
}

async fn look(target: &Target, role: Role) -> Result<(i64, bool, Vec<String>), PgError> {
    let mut connection = target.connect(role).await?;
    let before = clock::now();
    let (server, tables, off): (i64, bool, Vec<String>) =
        sqlx::query_as(LOOK).fetch_one(&mut connection).await?;
    let after = clock::now();
    connection.close().await?;
    // It looked at its clock some time in between.
    Ok((server - before.midpoint(after), tables, off))
}
