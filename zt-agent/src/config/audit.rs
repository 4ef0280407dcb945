// SPDX-License-Identifier: Apache-2.0
//! How the settings of the audit trail are read, and what they come to.

use std::path::Path;

use super::apply::{Applied, absolute, size};
use super::setting::Raw;
use super::{Audit, Config};
use crate::audit::archive;
use crate::audit::postgres::Target;
use crate::audit::spool::WhenFull;
use crate::audit::sqlite::Durability;

impl Audit {
    /// The database as those use it who answer questions.
    pub fn reading(&self) -> &str {
        self.read_dsn.as_deref().unwrap_or(&self.dsn)
    }

    /// The database as those use it who look after its tables.
    pub fn maintaining(&self) -> &str {
        self.maintain_dsn.as_deref().unwrap_or(&self.dsn)
    }

    /// All that is said of where it is, each with its key. Any of them may have a password in it.
    pub fn dsns(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let others = [
            ("audit.readDsn", &self.read_dsn),
            ("audit.maintainDsn", &self.maintain_dsn),
        ];
        let others = others
            .into_iter()
            .filter_map(|(key, dsn)| Some((key, dsn.as_deref()?)));
        std::iter::once(("audit.dsn", self.dsn.as_str())).chain(others)
    }
}

pub(super) fn dsn(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.text()?;
    if archive::is_postgres(text) {
        // A DSN may carry a password: it is not repeated.
        Target::parse(text).map_err(|error| error.to_string())?;
        text.clone_into(&mut config.audit.dsn);
        return Ok(());
    }
    match text.strip_prefix("sqlite://") {
        Some(path) if Path::new(path).is_absolute() && !path.ends_with('/') => {
            text.clone_into(&mut config.audit.dsn);
            Ok(())
        }
        Some(_) => {
            Err("must name a file by its absolute path, such as `sqlite:///var/lib/zt/audit.db`".to_owned())
        }
        None => Err(
            "must be `sqlite://` and an absolute path, such as `sqlite:///var/lib/zt/audit.db`, or \
             `postgres://user@host/database`"
                .to_owned(),
        ),
    }
}

pub(super) fn read_dsn(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.audit.read_dsn = Some(of_server(raw)?);
    Ok(())
}

pub(super) fn maintain_dsn(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.audit.maintain_dsn = Some(of_server(raw)?);
    Ok(())
}

/// A DSN of `PostgreSQL`.
fn of_server(raw: Raw<'_>) -> Result<String, String> {
    let text = raw.text()?;
    Target::parse(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

pub(super) fn spool(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.audit.spool = absolute(raw)?;
    Ok(())
}

pub(super) fn when_full(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.text()?;
    config.audit.when_full =
        WhenFull::from_name(text).ok_or_else(|| format!("must be `oldest` or `newest`, not `{text}`"))?;
    Ok(())
}

pub(super) fn keys(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.audit.keys = Some(absolute(raw)?);
    Ok(())
}

pub(super) fn sync(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.text()?;
    config.audit.sync =
        Durability::from_name(text).ok_or_else(|| format!("must be `second` or `batch`, not `{text}`"))?;
    Ok(())
}

pub(super) fn max_disk_bytes(config: &mut Config, raw: Raw<'_>) -> Applied {
    const LEAST: u64 = 16 << 20;
    let text = raw.quantity()?;
    let bytes = size(&text)
        .ok_or_else(|| format!("`{text}` is not a size such as `2GiB`, `500MiB` or a number of bytes"))?;
    if bytes < LEAST {
        return Err(format!("must be at least 16MiB, not `{text}`"));
    }
    config.audit.max_disk_bytes = bytes;
    Ok(())
}

pub(super) fn api_share(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.quantity()?;
    config.audit.api_share = match text.parse() {
        Ok(percent @ 1..=100) => Some(percent),
        _ => return Err(format!("must be a number of percent from 1 to 100, not `{text}`")),
    };
    Ok(())
}

pub(super) fn retention_days(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.quantity()?;
    config.audit.retention_days = match text.parse() {
        Ok(days @ 1..=36_500) => days,
        _ => return Err(format!("must be a number of days from 1 to 36500, not `{text}`")),
    };
    Ok(())
}
