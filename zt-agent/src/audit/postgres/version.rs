// SPDX-License-Identifier: Apache-2.0
//! Which servers can hold the trail: 14 is the first release that knows functions whose bodies are standard SQL, as those of the
//! first migration are.

use sqlx::postgres::PgConnection;

use super::PgError;
use super::connect::{Role, Target};

/// The oldest release that can, as the server numbers it.
const OLDEST: i32 = 140_000;

/// Refuses a server that is too old, before anything is made in it.
pub(super) async fn check(connection: &mut PgConnection, target: &Target) -> Result<(), PgError> {
    let number: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::integer")
        .fetch_one(connection)
        .await
        .map_err(|source| target.failed(Role::Maintainer, source))?;
    judge(number, target.place())
}

fn judge(number: i32, place: &str) -> Result<(), PgError> {
    if number >= OLDEST {
        return Ok(());
    }
    // Before 10 a release had three numbers, of which the first two named it.
    let minor = if number >= 100_000 {
        number % 10_000
    } else {
        number / 100 % 100
    };
    Err(PgError::Version {
        place: place.to_owned(),
        found: format!("{}.{minor}", number / 10_000),
        oldest: OLDEST / 10_000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_14_are_refused_by_their_names() {
        for number in [140_000, 140_018, 150_006, 180_001] {
            assert!(judge(number, "db:5432").is_ok(), "{number}");
        }
        for (number, name) in [(139_999, "13.9999"), (130_022, "13.22"), (90_624, "9.6")] {
            let error = judge(number, "db:5432").expect_err(name);
            assert_eq!(error.cause(), "other");
            assert!(!error.is_of_the_batch() && !error.is_forbidden());
            assert_eq!(
                error.to_string(),
                format!(
                    "the server at db:5432 is PostgreSQL {name}, and the audit trail needs 14 or later: nothing was made in \
                     it; upgrade the server, or name another one in audit.dsn"
                )
            );
        }
    }
}
