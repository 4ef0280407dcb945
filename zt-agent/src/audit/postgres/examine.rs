// SPDX-License-Identifier: Apache-2.0
//! Looks at a server as each role would, and changes nothing.

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::PgError;
use super::connect::{Role, Target};
use super::targets::Targets;
use crate::audit::clock;

/// The server's clock, Unix nanoseconds; whether the tables are there; which settings are off; and which database it is.
const LOOK: &str = "SELECT (date_part('epoch', clock_timestamp()) * 1e9::double precision)::bigint,
    to_regclass('zt_audit.record') IS NOT NULL,
    ARRAY(SELECT name FROM pg_catalog.pg_settings
          WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name),
    current_database()::text,
    (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database()),
    to_regclass('zt_audit.record')::oid::bigint";

/// What the login may do with the tables besides inserting, in whichever of its roles: it can take each of them, whatever it
/// inherits. A superuser is a member of all.
const MORE: &str = "SELECT ARRAY(
    SELECT right_of.name FROM unnest(ARRAY['SELECT', 'UPDATE', 'DELETE', 'TRUNCATE']) WITH ORDINALITY AS right_of(name, place)
    WHERE EXISTS (
        SELECT FROM pg_catalog.pg_roles r, pg_catalog.pg_class c
        WHERE pg_has_role(session_user, r.oid, 'MEMBER')
          AND c.relnamespace = to_regnamespace('zt_audit') AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
          AND CASE WHEN right_of.name IN ('SELECT', 'UPDATE') THEN has_any_column_privilege(r.oid, c.oid, right_of.name)
                   ELSE has_table_privilege(r.oid, c.oid, right_of.name) END)
    ORDER BY right_of.place)";

/// What was found of a server.
#[derive(Debug)]
pub struct Examined {
    /// Each role by name: whether its login may take it, or why not.
    pub roles: Vec<(&'static str, Result<(), PgError>)>,
    /// Nanoseconds by which the server's clock is ahead of this machine's; `None` where nobody could ask.
    pub ahead: Option<i64>,
    /// Whether the tables are there.
    pub tables: bool,
    /// The settings that are off without which a crash of the server's machine takes what the server has confirmed: `fsync`,
    /// `full_page_writes`. Empty also where nobody could ask.
    pub off: Vec<String>,
    /// What the login that inserts may do besides, such as `DELETE`; `None` where nobody could ask.
    pub more: Option<Vec<String>>,
    /// The roles whose login comes to another database than the first one that was let in.
    pub elsewhere: Vec<&'static str>,
}

impl Examined {
    /// Why its login may not take a role; `None` where it may.
    pub fn refusal(&self, role: &str) -> Option<&PgError> {
        let found = self.roles.iter().find(|(name, _)| *name == role)?;
        found.1.as_ref().err()
    }
}

/// Connects in each of the three roles, with the login that it has. A server that cannot be reached is not tried again.
pub async fn examine(targets: &Targets) -> Examined {
    let mut examined = Examined {
        roles: Vec::new(),
        ahead: None,
        tables: false,
        off: Vec::new(),
        more: None,
        elsewhere: Vec::new(),
    };
    let mut gone: Option<&str> = None;
    let mut seen: Option<Seen> = None;
    for role in [Role::Writer, Role::Reader, Role::Maintainer] {
        let target = targets.of(role);
        if gone == Some(target.place()) {
            continue;
        }
        let looked = look(target, role).await;
        if looked.as_ref().is_err_and(PgError::is_away) {
            gone = Some(target.place());
        }
        if let Ok(looked) = &looked {
            match &seen {
                // Where records go is asked first; others answer for it where it did not.
                None => {
                    examined.ahead = Some(looked.ahead);
                    examined.tables = looked.tables;
                    examined.off.clone_from(&looked.off);
                    examined.more.clone_from(&looked.more);
                    seen = Some(looked.seen.clone());
                }
                Some(seen) if *seen != looked.seen => examined.elsewhere.push(role.name()),
                Some(_) => {}
            }
        }
        examined.roles.push((role.name(), looked.map(drop)));
    }
    examined
}

/// Which database was come to: its name, and the numbers of it and of its table, in which two of one name differ as a rule. A replica
/// has those of what it is a replica of.
type Seen = (String, i64, Option<i64>);

/// What [`LOOK`] answers.
type Row = (i64, bool, Vec<String>, String, i64, Option<i64>);

/// What one connection found.
struct Looked {
    seen: Seen,
    ahead: i64,
    tables: bool,
    off: Vec<String>,
    more: Option<Vec<String>>,
}

async fn look(target: &Target, role: Role) -> Result<Looked, PgError> {
    let mut connection = target.connect(role).await?;
    let before = clock::now();
    let (server, tables, off, name, number, table): Row =
        sqlx::query_as(LOOK).fetch_one(&mut connection).await?;
    let after = clock::now();
    let more = match role {
        Role::Writer => Some(more(&mut connection).await?),
        Role::Reader | Role::Maintainer => None,
    };
    connection.close().await?;
    Ok(Looked {
        seen: (name, number, table),
        // It looked at its clock some time in between.
        ahead: server - before.midpoint(after),
        tables,
        off,
        more,
    })
}

async fn more(connection: &mut PgConnection) -> Result<Vec<String>, PgError> {
    Ok(sqlx::query_scalar(MORE).fetch_one(connection).await?)
}
