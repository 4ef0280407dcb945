// SPDX-License-Identifier: Apache-2.0
//! Times and durations as records show them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Unix time in nanoseconds; RFC 3339 in UTC outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// A text that is not a time this agent can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a time like 2026-02-23T14:30:00Z (RFC 3339, years 1678 to 2261)")]
pub struct TimestampError {
    /// The text.
    pub found: String,
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0))
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok())
            .ok_or(std::fmt::Error)?;
        f.pad(&text)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|time| i64::try_from(time.unix_timestamp_nanos()).ok())
            .map(Self)
            .ok_or_else(|| TimestampError {
                found: text.to_owned(),
            })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Nanoseconds; microseconds outside, whole ones as an integer as in the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Latency(pub u64);

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u64(self.0 / 1000)
        } else {
            serializer.serialize_f64(self.0 as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let microseconds = f64::deserialize(deserializer)?;
        if microseconds.is_finite() && microseconds >= 0.0 {
            Ok(Self((microseconds * 1000.0).round() as u64))
        } else {
            Err(de::Error::custom(
                "a latency is a number of microseconds, not negative",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_lead_back() {
        let time: Timestamp = "2026-02-23T15:30:00.000001+01:00".parse().expect("time");
        assert_eq!(time.to_string(), "2026-02-23T14:30:00.000001Z");
        assert_eq!(time.to_string().parse(), Ok(time));
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("9999-01-01T00:00:00Z".parse::<Timestamp>().is_err());
        for edge in [i64::MIN, -1, 0, i64::MAX] {
            assert_eq!(Timestamp(edge).to_string().parse(), Ok(Timestamp(edge)));
        }
    }

    #[test]
    fn latencies_are_microseconds() {
        let json = |latency| serde_json::to_string(&Latency(latency)).expect("json");
        assert_eq!(json(42_000), "42");
        assert_eq!(json(412), "0.412");
        for value in [0, 1, 999, 1_000, 123_456_789, u64::from(u32::MAX)] {
            assert_eq!(
                serde_json::from_str::<Latency>(&json(value)).expect("reads"),
                Latency(value)
            );
        }
        assert!(serde_json::from_str::<Latency>("-1").is_err());
    }
}
