// SPDX-License-Identifier: Apache-2.0
//! Where the server is, and how each role connects to it.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use super::PgError;

/// How long a connection may take to come about.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a question may take.
pub(super) const MOST_SECONDS: u64 = 10;

/// Each statement sees what was committed before it, whatever the database's own setting is: what comes for a day that was
/// added up is counted right only so.
const READ_COMMITTED: (&str, &str) = ("default_transaction_isolation", "read committed");

/// What is confirmed goes from the spool, so a writer's commit has to be on the server's disk by then: `off`, whoever has set
/// it, becomes `on`. All others write it there first, and whom they wait for besides (`local`: nobody) is for the operator to
/// say. In any case the session sets it, so that it cannot become `off` while the connection lasts.
const WAITS_FOR_DISK: &str = "SELECT set_config('synchronous_commit',
    coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), false)";

/// A server, a database and a login.
#[derive(Clone, Debug)]
pub struct Target {
    options: PgConnectOptions,
    place: String,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `INSERT`.
    Writer,
    /// `SELECT`.
    Reader,
    /// Everything in the schema.
    Maintainer,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Writer => "zt_audit_writer",
            Self::Reader => "zt_audit_reader",
            Self::Maintainer => "zt_audit_maintainer",
        }
    }

    /// Settings of the session.
    const fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Writer => &[
                ("statement_timeout", "60s"),
                ("lock_timeout", "20s"),
                ("idle_in_transaction_session_timeout", "60s"),
                READ_COMMITTED,
            ],
            // Each question has other bounds of time: a plan that was made for all of them looks at every partition.
            Self::Reader => &[
                ("statement_timeout", "10s"),
                ("default_transaction_read_only", "on"),
                ("plan_cache_mode", "force_custom_plan"),
            ],
            Self::Maintainer => &[("lock_timeout", "5s"), READ_COMMITTED],
        }
    }
}

impl Target {
    /// Reads a DSN. Over the network the server has to prove who it is, unless `sslmode` says otherwise.
    pub fn parse(dsn: &str) -> Result<Self, PgError> {
        let refuse = |problem: String| PgError::Dsn { problem };
        if !dsn.starts_with("postgres://") && !dsn.starts_with("postgresql://") {
            return Err(refuse("not a PostgreSQL DSN".to_owned()));
        }
        let options = PgConnectOptions::from_str(dsn)
            .map_err(|error| refuse(format!("not a PostgreSQL DSN ({error})")))?;
        let Some(database) = options.get_database().map(str::to_owned) else {
            return Err(refuse("names no database".to_owned()));
        };
        let socket = options.get_socket().map(|socket| socket.display().to_string());
        let place = match &socket {
            Some(socket) => format!("{socket}, database {database}"),
            None => format!(
                "{}:{}, database {database}",
                options.get_host(),
                options.get_port()
            ),
        };
        let said = ["sslmode=", "ssl-mode="].iter().any(|key| dsn.contains(key));
        let local =
            socket.is_some() || is_loopback(options.get_host()) || options.get_host().starts_with('/');
        let options = match (said, local) {
            (true, _) => options,
            (false, true) => options.ssl_mode(PgSslMode::Prefer),
            (false, false) => options.ssl_mode(PgSslMode::VerifyFull),
        };
        Ok(Self {
            options: options
                .application_name("zt-agent")
                .log_statements(log::LevelFilter::Trace)
                .log_slow_statements(log::LevelFilter::Debug, Duration::from_secs(5)),
            place,
        })
    }

    /// Host and database, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// How a role connects.
    pub(super) fn options(&self, role: Role) -> PgConnectOptions {
        let both = [
            ("role", role.name()),
            ("search_path", "zt_audit"),
            ("jit", "off"),
            ("timezone", "UTC"),
        ];
        self.options
            .clone()
            .options(both.iter().chain(role.settings()).copied())
    }

    /// Connects in a role.
    pub(super) async fn connect(&self, role: Role) -> Result<PgConnection, PgError> {
        let options = self.options(role);
        let connecting = async {
            let mut connection = options.connect().await?;
            if role == Role::Writer {
                sqlx::raw_sql(WAITS_FOR_DISK).execute(&mut connection).await?;
            }
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(CONNECT_TIME, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(source)) => Err(self.failed(role, source)),
            Err(_) => Err(PgError::Slow {
                seconds: CONNECT_TIME.as_secs(),
            }),
        }
    }

    pub(super) fn failed(&self, role: Role, source: sqlx::Error) -> PgError {
        PgError::Connect {
            place: self.place.clone(),
            role: role.name(),
            source,
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

// The settings of readers name it.
const _: () = assert!(MOST_SECONDS == 10);

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(dsn: &str) -> PgSslMode {
        Target::parse(dsn).expect(dsn).options.get_ssl_mode()
    }

    #[test]
    fn over_the_network_the_server_proves_who_it_is_unless_told_otherwise() {
        assert!(matches!(
            mode("postgres://u@db.example/zt"),
            PgSslMode::VerifyFull
        ));
        assert!(matches!(
            mode("postgres://u@10.0.0.1:5433/zt"),
            PgSslMode::VerifyFull
        ));
        assert!(matches!(
            mode("postgres://u@db.example/zt?sslmode=require"),
            PgSslMode::Require
        ));
        assert!(matches!(mode("postgres://u@127.0.0.1/zt"), PgSslMode::Prefer));
        assert!(matches!(mode("postgres://u@[::1]/zt"), PgSslMode::Prefer));
        assert!(matches!(
            mode("postgres:///zt?host=/run/postgresql"),
            PgSslMode::Prefer
        ));
    }

    #[test]
    fn what_is_no_dsn_is_refused_without_being_shown() {
        for dsn in [
            "sqlite:///x?password=secret",
            "postgres://u:secret@db.example",
            "postgres://u:secret@db.example:nine/zt",
            "postgres://u:secret@db.example/zt?sslmode=maybe",
        ] {
            let error = Target::parse(dsn).expect_err(dsn).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let target = Target::parse("postgres://u:secret@db.example:5433/zt").expect("valid");
        assert_eq!(target.place(), "db.example:5433, database zt");
    }
}
