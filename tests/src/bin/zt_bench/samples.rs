// SPDX-License-Identifier: Apache-2.0
//! Many measurements of one thing, and two things measured in turn.

use anyhow::Result;
use serde::Serialize;

/// What is told of many measurements.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// How many there were.
    pub(crate) samples: usize,
}

impl Summary {
    /// Sums up; `None` where there is nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: *sorted.get(sorted.len() / 2)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            samples: sorted.len(),
        })
    }

    /// A single measurement.
    pub(crate) fn one(value: f64) -> Self {
        Self {
            median: value,
            min: value,
            max: value,
            samples: 1,
        }
    }
}

/// Takes batches of `N` things in turn, round after round, every other round in the opposite order, so that what
/// drifts drifts for all. `batch` is told which is its turn. Gives each one's measurements, by round.
pub(crate) fn interleave<const N: usize>(
    rounds: usize,
    batch: impl FnMut(usize) -> Result<f64>,
) -> Result<[Vec<f64>; N]> {
    let mut samples = in_turn(N, rounds, batch)?.into_iter();
    Ok(std::array::from_fn(|_| samples.next().unwrap_or_default()))
}

/// The same of as many things as there are, each batch of which may give more than one measurement.
pub(crate) fn in_turn<T>(
    things: usize,
    rounds: usize,
    mut batch: impl FnMut(usize) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut samples: Vec<Vec<T>> = (0..things).map(|_| Vec::with_capacity(rounds)).collect();
    // The first round warms caches and branch predictors up.
    for turn in 0..things {
        batch(turn)?;
    }
    for round in 0..rounds {
        for step in 0..things {
            let turn = if round % 2 == 0 { step } else { things - 1 - step };
            samples[turn].push(batch(turn)?);
        }
    }
    Ok(samples)
}

/// The median of the rounds' ratios: the two measurements of a round saw the same machine.
pub(crate) fn ratio(over: &[f64], under: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = over.iter().zip(under).map(|(over, under)| over / under).collect();
    Summary::of(&ratios).map(|summary| summary.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_back_and_forth() -> Result<()> {
        let mut turns = Vec::new();
        let samples = interleave::<2>(2, |turn| {
            turns.push(turn);
            Ok(turn as f64)
        })?;
        assert_eq!(turns, [0, 1, 0, 1, 1, 0]);
        assert_eq!(samples, [vec![0.0; 2], vec![1.0; 2]]);
        Ok(())
    }

    #[test]
    fn a_ratio_is_that_of_the_rounds() {
        assert_eq!(ratio(&[2.0, 40.0, 3.0], &[1.0, 20.0, 1.0]), Some(2.0));
        assert!(Summary::of(&[]).is_none());
    }
}
