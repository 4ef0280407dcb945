// SPDX-License-Identifier: Apache-2.0
//! How long a limit is armed after its stage came in force: a number and a unit, such as `90m`.

/// Seconds where nothing is said.
pub(super) const DEFAULT: u64 = 3600;
/// Most seconds: a limit that is armed for ever is a switch by which whoever can be refused ends enforcement.
pub(super) const MOST: u64 = 30 * 86_400;
/// Fewest seconds: those in which denials are counted.
pub(super) const LEAST: u64 = super::WINDOW;
/// What a text of it looks like, for schemas.
pub(in crate::policy) const PATTERN: &str = "^[1-9][0-9]{0,5}[smhd]$";

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// The seconds that a text says; `None` where it is not one.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number = text.strip_suffix(unit)?;
    let plain = (1..=6).contains(&number.len()) && !number.starts_with('0');
    if !plain || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The shortest text that says them.
pub(super) fn text(seconds: u64) -> String {
    let whole = |(_, factor): &&(char, u64)| seconds.is_multiple_of(*factor);
    match UNITS.iter().find(whole) {
        Some((unit, factor)) => format!("{}{unit}", seconds / factor),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_seconds_and_comes_back() {
        for (said, wanted) in [
            ("60s", 60),
            ("90s", 90),
            ("90m", 5400),
            ("1h", DEFAULT),
            ("30d", MOST),
        ] {
            assert_eq!(seconds(said), Some(wanted), "{said}");
            assert_eq!(seconds(&text(wanted)), Some(wanted), "{said}");
        }
        assert_eq!(text(3600), "1h");
        for said in [
            "", "h", "1", "1w", "0h", "01h", "-1h", "1.5h", " 1h", "1000000s", "\u{661}h",
        ] {
            assert_eq!(seconds(said), None, "{said}");
        }
    }
}
