// SPDX-License-Identifier: Apache-2.0
//! Points in time as one names them on the command line.

use std::str::FromStr;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

/// A point in time, given as RFC 3339 or as how long ago: `30s`, `10m`, `2h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct When(OffsetDateTime);

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(ago) = ago(text) {
            return OffsetDateTime::now_utc()
                .checked_sub(ago)
                .map(Self)
                .ok_or_else(|| "is too long ago".to_owned());
        }
        match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(time) => Ok(Self(time.to_offset(UtcOffset::UTC))),
            Err(_) => {
                Err("write a time like 2026-01-31T12:00:00Z, or how long ago: 30s, 10m, 2h, 7d".to_owned())
            }
        }
    }
}

fn ago(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = digits.parse().ok()?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::seconds(i64::from(number) * seconds))
}

impl When {
    /// As the API takes it.
    pub(super) fn rfc3339(self) -> String {
        // Only years beyond four digits have no such form, and no such time was parsed.
        self.0.format(&Rfc3339).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_relative() {
        let time: When = "2026-01-31T13:00:00+01:00".parse().expect("absolute");
        assert_eq!(time.rfc3339(), "2026-01-31T12:00:00Z");
        let ago: When = "2h".parse().expect("relative");
        let difference = OffsetDateTime::now_utc() - ago.0;
        assert!(
            (difference - Duration::hours(2)).abs() < Duration::minutes(1),
            "{difference}"
        );
        for bad in ["", "h", "yesterday", "2026-01-31", "5 m", "é"] {
            assert!(
                bad.parse::<When>().expect_err("bad").contains("how long ago"),
                "{bad}"
            );
        }
        assert!("4294967295d".parse::<When>().is_err());
    }
}
