// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a `PostgreSQL` server.

/// An error of the `PostgreSQL` store. None of them shows the DSN: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The DSN cannot be used.
    #[error("{problem}; write postgres://user@host/database?sslmode=verify-full")]
    Dsn {
        /// What is wrong with it.
        problem: String,
    },
    /// No connection in that role.
    #[error(
        "cannot connect to PostgreSQL at {place} as {role}: {source}{}",
        advice(source)
    )]
    Connect {
        /// Host and database.
        place: String,
        /// The role that was to be taken.
        role: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// The tables could not be made or brought up to date.
    #[error("cannot bring the audit trail's tables at {place} up to date: {source}")]
    Migrate {
        /// Host and database.
        place: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
    /// The server did not answer in time.
    #[error("PostgreSQL did not answer within {seconds} s")]
    Slow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A record cannot be read back.
    #[error("record {id} of the audit trail in PostgreSQL is damaged: {column} is {found}")]
    Damaged {
        /// Its id.
        id: uuid::Uuid,
        /// The column.
        column: &'static str,
        /// What it holds.
        found: String,
    },
}

/// The causes that [`PgError::cause`] tells apart.
pub const CAUSES: [&str; 6] = ["unreachable", "slow", "permission", "full", "rejected", "other"];

impl PgError {
    /// Why, in one of the words of [`CAUSES`], for counting.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Slow { .. } => "slow",
            Self::Dsn { .. } | Self::Migrate { .. } | Self::Damaged { .. } => "other",
            Self::Connect { source, .. } | Self::Database(source) => match source {
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut => "unreachable",
                sqlx::Error::Encode(_) => "rejected",
                sqlx::Error::Database(error) => of_code(error.code().as_deref().unwrap_or_default()),
                _ => "other",
            },
        }
    }

    /// Whether the server refuses what the batch says, and would again; not how it fares or what it lets us do.
    pub fn is_of_the_batch(&self) -> bool {
        self.cause() == "rejected"
    }
}

fn of_code(code: &str) -> &'static str {
    match code {
        "42501" => "permission",
        "53100" | "53200" | "53400" => "full",
        "57014" => "slow",
        // The server is starting, stopping or was killed; too many connections.
        "57P01" | "57P02" | "57P03" | "53300" => "unreachable",
        // No such role, password wrong, not in pg_hba.conf.
        _ if code.starts_with("28") => "permission",
        _ if code.starts_with("08") => "unreachable",
        // A sum of the tables ran over, not a value of the record: no reason to give the record up.
        "22003" => "other",
        // Data exceptions, a value of a batch that breaks a constraint, a row too large.
        _ if code.starts_with("22") || code.starts_with("23") || code.starts_with("54") => "rejected",
        _ => "other",
    }
}

/// What to do about a refusal that has one usual reason.
fn advice(source: &sqlx::Error) -> &'static str {
    let code = source
        .as_database_error()
        .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    match code.as_deref() {
        Some("42501") => "; GRANT that role to the login of audit.dsn, see deploy/postgres/roles.sql",
        Some("22023" | "42704") => "; run deploy/postgres/roles.sql in that database",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_cause_and_only_bad_values_are_the_batchs_fault() {
        for (code, cause) in [
            ("42501", "permission"),
            ("28P01", "permission"),
            ("53100", "full"),
            ("57P03", "unreachable"),
            ("08006", "unreachable"),
            ("57014", "slow"),
            ("22021", "rejected"),
            ("22003", "other"),
            ("23502", "rejected"),
            ("40P01", "other"),
            ("", "other"),
        ] {
            assert_eq!(of_code(code), cause, "{code}");
            assert!(CAUSES.contains(&cause));
        }
        assert!(!PgError::Slow { seconds: 1 }.is_of_the_batch());
    }
}
