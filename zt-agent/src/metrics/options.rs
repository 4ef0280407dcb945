// SPDX-License-Identifier: Apache-2.0
//! Handshakes in which the identity option did not arrive, although both ends bear it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Metrics;
use super::exposition::Writer;

/// What became of an identity option on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionLoss {
    /// Nobody answered SYNs with it, and somebody the one without.
    Dropped,
    /// A workload of another node answered a SYN that bore it as if it had not.
    Stripped,
    /// Somebody at an address of another node, whose workloads prove who they are, came without it and was denied for that.
    Missing,
}

impl OptionLoss {
    /// Each of them, in order.
    pub const ALL: [Self; 3] = [Self::Dropped, Self::Stripped, Self::Missing];

    /// Its label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Stripped => "stripped",
            Self::Missing => "missing",
        }
    }
}

/// The counters.
#[derive(Debug, Default)]
pub(super) struct OptionLosses([AtomicU64; OptionLoss::ALL.len()]);

impl OptionLosses {
    pub(super) fn add(&self, loss: OptionLoss) {
        if let Some(counter) = self.0.get(loss as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(super) fn options(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let counted = OptionLoss::ALL.into_iter().zip(&metrics.options.0);
    writer.counters(
        "zt_options_lost",
        "Handshakes in which the identity option did not arrive",
        counted.map(|(loss, counter)| ([("how", loss.name())], counter.load(Ordering::Relaxed))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_its_own_counter() {
        let metrics = Metrics::new();
        for (times, loss) in OptionLoss::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.option_lost(loss));
        }
        let text = metrics.encode().expect("encodes");
        for (times, loss) in OptionLoss::ALL.into_iter().enumerate() {
            let line = format!("zt_options_lost_total{{how=\"{}\"}} {times}\n", loss.name());
            assert!(text.contains(&line), "{text}");
        }
    }
}
