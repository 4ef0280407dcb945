// SPDX-License-Identifier: Apache-2.0
//! Logarithmic axes: how far they go, which values are written beside them, and how.

/// Room beyond the least and the greatest value.
const ROOM: f64 = 1.3;

/// An axis on which all these values have room. Values that no logarithm has are left out.
pub(super) fn around(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let values = values.filter(|value| value.is_finite() && *value > 0.0);
    let ends = values.fold(None, |ends: Option<(f64, f64)>, value| {
        let (low, high) = ends.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    });
    ends.map(|(low, high)| (low / ROOM, high * ROOM))
}

/// Round values on an axis: powers of ten, and, on a short one, what is between them.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    let steps: &[f64] = if decades > 3.0 {
        &[1.0]
    } else if decades > 1.8 {
        &[1.0, 3.0]
    } else if decades > 0.5 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    };
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let all = (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
    all.filter(|value| (low..=high).contains(value)).collect()
}

/// As short as it goes, with separators from a thousand on.
pub(super) fn label(value: f64) -> String {
    if value < 1000.0 {
        // Not 0.30000000000000004.
        let digits = if value < 0.01 { 4 } else { 2 };
        let text = format!("{value:.digits$}");
        return if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        };
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_room_and_a_few_round_values() {
        assert_eq!(around([0.0, f64::NAN].into_iter()), None);
        let (low, high) = around([10.0, 150.0].into_iter()).expect("there are values");
        assert!(low < 10.0 && high > 150.0);
        for (low, high) in [(0.8, 2.1), (7.0, 200.0), (0.01, 5000.0), (3.0, 9.0)] {
            let count = ticks(low, high).len();
            assert!(
                (2..=8).contains(&count),
                "{low} to {high}: {:?}",
                ticks(low, high)
            );
        }
    }

    #[test]
    fn labels_are_short() {
        let labels = [0.3, 0.05, 1.0, 1.5, 20.0, 10_000.0].map(label);
        assert_eq!(labels, ["0.3", "0.05", "1", "1.5", "20", "10,000"]);
    }
}
