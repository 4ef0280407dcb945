// SPDX-License-Identifier: Apache-2.0
//! The logins: one for all three roles, or one for each.

use super::PgError;
use super::connect::{Role, Target};

/// Where each role connects, and with which login.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Who inserts.
    pub writer: Target,
    /// Who answers questions.
    pub reader: Target,
    /// Who makes and drops partitions.
    pub maintainer: Target,
}

impl Targets {
    /// Reads the DSN of who inserts, and those of the others where they are not the same.
    pub fn parse(dsn: &str, read: Option<&str>, maintain: Option<&str>) -> Result<Self, PgError> {
        let all = Self::from(Target::parse(dsn)?);
        Ok(Self {
            reader: read.map_or_else(|| Ok(all.reader), Target::parse)?,
            maintainer: maintain.map_or_else(|| Ok(all.maintainer), Target::parse)?,
            writer: all.writer,
        })
    }

    /// Where a role connects.
    pub(super) const fn of(&self, role: Role) -> &Target {
        match role {
            Role::Writer => &self.writer,
            Role::Reader => &self.reader,
            Role::Maintainer => &self.maintainer,
        }
    }
}

impl From<Target> for Targets {
    /// One login for everything.
    fn from(target: Target) -> Self {
        Self {
            writer: target.clone(),
            reader: target.clone(),
            maintainer: target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_its_own_or_the_one_of_who_inserts() {
        const WRITE: &str = "postgres://w@10.0.0.1/zt";
        const READ: &str = "postgres://r@10.0.0.2/zt";
        const MAINTAIN: &str = "postgres://m@10.0.0.3/zt";
        let places = |read, maintain| {
            let all = Targets::parse(WRITE, read, maintain).expect("valid");
            [Role::Writer, Role::Reader, Role::Maintainer].map(|role| all.of(role).place().to_owned())
        };
        let [write, read, maintain] =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|host| format!("{host}:5432, database zt"));
        let (write, read, maintain) = (write.as_str(), read.as_str(), maintain.as_str());
        assert_eq!(places(None, None), [write, write, write]);
        assert_eq!(places(Some(READ), None), [write, read, write]);
        assert_eq!(places(None, Some(MAINTAIN)), [write, write, maintain]);
        assert_eq!(places(Some(READ), Some(MAINTAIN)), [write, read, maintain]);
        let error = Targets::parse(WRITE, Some("postgres://r:secret@db"), None).expect_err("no database");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
