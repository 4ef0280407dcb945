// SPDX-License-Identifier: Apache-2.0
//! zt beside what users would take instead: the same client and server, one after the other under each of them, round after
//! round.

mod charge;
mod contender;
mod envoy;
mod figures;
mod iptables;
mod nftables;
mod place;
mod tool;
mod zt;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use zt_tests::{Cgroup, Sandbox};

use crate::Plan;
use crate::crew::Worker;
use crate::load::CHUNK;
use crate::machine::Machine;
use crate::order::Order;
use crate::processor::nanoseconds;
use crate::report;
use crate::samples::in_turn;

use self::contender::{Contender, Entry, WORKLOADS, entry};
use self::envoy::Envoy;
pub(crate) use self::figures::Figures;
use self::figures::Measure;
use self::iptables::Iptables;
use self::nftables::{Nftables, Shape};
use self::place::{OPEN, Place, SWITCH, answer, at, is_wrong};
use self::zt::Zt;

/// Rules in force, with the client's own two.
const SIZES: [usize; 4] = [10, 100, 1000, 10_000];
/// After a batch, so that what it set off elsewhere is over and counted: records, the closing of connections.
const REST: Duration = Duration::from_millis(100);
/// Attempts before a change, which end as they did.
const BEFORE: Duration = Duration::from_millis(20);
/// Without anything that decides.
const UNMANAGED: &str = "unmanaged";

/// Who is measured, under the name that the table has for it.
struct Standing {
    name: &'static str,
    contender: Box<dyn Contender>,
    /// Why it is measured no more.
    failed: Option<String>,
}

/// All of it. What is known is written after each size.
pub(crate) fn compare(plan: &Plan, machine: Machine, json: Option<&Path>) -> Result<Figures> {
    let sandbox = Sandbox::new("peers")?;
    let plain = bare(&sandbox, plan, "plain")?;
    // Where nothing decides, whoever looks at verdicts must find a wrong one.
    let looked = plain.ensure_verdicts();
    ensure!(
        looked.as_ref().is_err_and(is_wrong),
        "verdicts are looked at, and without any rules the outcome is {looked:?}"
    );
    let mut figures = Figures::new(machine, plan.quick, SIZES.to_vec());
    figures.introduce(UNMANAGED, "no rules");
    let mut standing = Vec::new();
    for (name, started) in contenders(&sandbox, plan)? {
        match started {
            Ok(Entry::Here { version, contender }) => {
                figures.introduce(name, &version);
                standing.push(Standing {
                    name,
                    contender,
                    failed: None,
                });
            }
            Ok(Entry::Absent(reason)) => figures.absent(name, &reason),
            Err(error) => figures.fail(name, &format!("{error:#}")),
        }
    }
    for rules in SIZES {
        eprintln!("measuring with {rules} rules, load {}", crate::machine::load());
        put_in_force(rules, &mut standing);
        traffic(plan, rules, &plain, &mut standing, &mut figures)?;
        for one in &mut standing {
            one.attempt(|one| changes(plan, rules, one.name, &mut *one.contender, &mut figures));
        }
        for one in &mut standing {
            one.attempt(|one| {
                if let Some(mebibytes) = one.contender.memory()? {
                    figures.add(Measure::Memory, rules, one.name, &[mebibytes], None);
                }
                Ok(())
            });
        }
        for one in &mut standing {
            if let Some(reason) = &one.failed {
                figures.fail(one.name, &format!("with {rules} rules: {reason}"));
            }
        }
        standing.retain(|one| one.failed.is_none());
        report::write(&figures, json)?;
    }
    Ok(figures)
}

impl Standing {
    /// Does something with it; the first failure is the last attempt.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        if self.failed.is_none()
            && let Err(error) = work(self)
        {
            self.failed = Some(format!("{error:#}"));
        }
    }
}

/// A namespace without rules, and cgroups that no agent manages.
fn bare(sandbox: &Sandbox, plan: &Plan, name: &str) -> Result<Place> {
    let outside = |name: &str| sandbox.outside().child(name);
    let (_, cpu) = plan.cpus();
    Ok(Place {
        host: sandbox.host(name)?,
        client: outside("client")?,
        server: outside("server")?,
        other: outside("other")?,
        cpu,
        behind: None,
        stranger: None,
    })
}

/// A namespace whose connections are tracked, and tracked no longer than they must be: as elsewhere, one that is closed leaves
/// nothing behind.
fn tracked(sandbox: &Sandbox, plan: &Plan, name: &str) -> Result<Place> {
    let place = bare(sandbox, plan, name)?;
    for state in ["time_wait", "close"] {
        place
            .host
            .sysctl(&format!("net/netfilter/nf_conntrack_tcp_timeout_{state}"), "1")
            .context("the kernel tracks no connections")?;
    }
    Ok(place)
}

type Started = Vec<(&'static str, Result<Entry>)>;

/// Each in a namespace of its own, with the fewest rules.
fn contenders(sandbox: &Sandbox, plan: &Plan) -> Result<Started> {
    let [rules, ..] = SIZES;
    let others: Vec<Cgroup> = (0..WORKLOADS)
        .map(|number| sandbox.outside().child(&format!("w{number}")))
        .collect::<Result<_>>()?;
    let mut all: Started = Vec::new();
    for (name, handshake) in [("zt", "auto"), ("zt, handshake: off", "off")] {
        all.push((name, entry(Zt::start(plan, handshake, rules))));
    }
    for (name, host, shape) in [
        ("nftables, a set", "nft-set", Shape::Set),
        ("nftables, a set, no tracking", "nft-stateless", Shape::Stateless),
        ("nftables, a chain", "nft-chain", Shape::Chain),
    ] {
        let started = tracked(sandbox, plan, host)
            .and_then(|place| Nftables::start(sandbox, place, shape, others.clone(), rules));
        all.push((name, entry(started)));
    }
    let started = tracked(sandbox, plan, "iptables")
        .and_then(|place| Iptables::start(sandbox, place, others.clone(), rules));
    all.push(("iptables, a chain", entry(started)));
    let (beside, here) = plan.cpus();
    let cgroup = sandbox.outside().child("envoy")?;
    let mut envoy = |name, host, cpu| {
        let started =
            bare(sandbox, plan, host).and_then(|place| Envoy::start(sandbox, place, &cgroup, cpu, rules));
        all.push((name, entry(started)));
    };
    envoy("Envoy, the same core", "envoy", here);
    if beside == here {
        let reason = "this machine has one processor".to_owned();
        all.push(("Envoy, a core of its own", Ok(Entry::Absent(reason))));
    } else {
        envoy("Envoy, a core of its own", "envoy-beside", beside);
    }
    Ok(all)
}

/// So many rules for each, and the verdicts that are to come of them.
fn put_in_force(rules: usize, standing: &mut [Standing]) {
    for one in standing {
        one.attempt(|one| {
            one.contender
                .rules(rules)
                .with_context(|| format!("{rules} rules cannot be put in force"))?;
            one.contender.place().ensure_verdicts()
        });
    }
}

/// A client and server under a contender, or under none.
struct Pair {
    name: &'static str,
    worker: Worker,
    helpers: Vec<u32>,
    failed: Option<String>,
}

impl Pair {
    fn start(name: &'static str, place: &Place, helpers: Vec<u32>) -> Result<Self> {
        let mut worker = place.worker(OPEN)?;
        worker.ask(&Order::Urgent)?;
        Ok(Self {
            name,
            worker,
            helpers,
            failed: None,
        })
    }

    /// Microseconds for each of what an order does many of: by the clock, and of processors.
    fn micros(&mut self, order: &Order, rest: Duration) -> Result<(f64, f64)> {
        let processor = |pair: &Self| -> Result<u64> {
            let of_helpers = pair.helpers.iter().map(|pid| nanoseconds(*pid));
            Ok(nanoseconds(pair.worker.pid())? + of_helpers.sum::<Result<u64>>()?)
        };
        let before = processor(self)?;
        let done = self.worker.ask(order)?;
        std::thread::sleep(rest);
        let count = done.count.max(1) as f64 * 1000.0;
        let computed = processor(self)? - before;
        Ok((done.nanoseconds as f64 / count, computed as f64 / count))
    }
}

/// Of each in turn, by round: microseconds by the clock and of processors, if it was measured.
type Samples = Vec<Vec<Option<(f64, f64)>>>;
/// What is taken of these two.
type Part = fn((f64, f64)) -> f64;

/// Gigabytes a second, of the time for a chunk: bytes a microsecond are megabytes a second.
fn rate(micros: f64) -> f64 {
    CHUNK as f64 / micros / 1000.0
}

/// Connections, round trips and bulk, of all in turn.
fn traffic(
    plan: &Plan,
    rules: usize,
    plain: &Place,
    standing: &mut [Standing],
    figures: &mut Figures,
) -> Result<()> {
    let mut pairs = vec![Pair::start(UNMANAGED, plain, Vec::new())?];
    for one in &mut *standing {
        one.attempt(|one| {
            let (place, helpers) = (one.contender.place(), one.contender.helpers());
            pairs.push(Pair::start(one.name, place, helpers)?);
            Ok(())
        });
    }
    let to = at(OPEN);
    let mut turns = |rounds: usize, order: &Order, rest: Duration| {
        in_turn(pairs.len(), rounds, |turn| {
            let pair = &mut pairs[turn];
            if pair.failed.is_some() {
                return Ok(None);
            }
            Ok(match pair.micros(order, rest) {
                Ok(micros) => Some(micros),
                // The others go on.
                Err(error) => {
                    pair.failed = Some(format!("{order:?}: {error:#}"));
                    None
                }
            })
        })
    };
    let calls = turns(plan.rounds(4, 40), &Order::Calls { to, count: 400 }, REST)?;
    let trips = turns(
        plan.rounds(4, 40),
        &Order::RoundTrips { to, count: 2000 },
        Duration::ZERO,
    )?;
    let bulk = turns(
        plan.rounds(4, 40),
        &Order::Bulk { to, chunks: 512 },
        Duration::ZERO,
    )?;
    let taken: [(Measure, &Samples, Part); 4] = [
        (Measure::Call, &calls, |(clock, _)| clock),
        (Measure::Processor, &calls, |(_, processor)| processor),
        (Measure::RoundTrip, &trips, |(clock, _)| clock),
        (Measure::Bulk, &bulk, |(clock, _)| rate(clock)),
    ];
    for (measure, samples, value) in taken {
        let values =
            |turn: usize| -> Vec<f64> { samples[turn].iter().flatten().copied().map(value).collect() };
        let unmanaged = values(0);
        for (turn, pair) in pairs.iter().enumerate().filter(|(_, pair)| pair.failed.is_none()) {
            let with = (turn > 0).then_some(unmanaged.as_slice());
            figures.add(measure, rules, pair.name, &values(turn), with);
        }
    }
    for pair in pairs {
        match (pair.failed, standing.iter_mut().find(|one| one.name == pair.name)) {
            (Some(reason), Some(one)) => one.failed = Some(reason),
            (Some(reason), None) => anyhow::bail!("without anything that decides: {reason}"),
            (None, _) => {}
        }
    }
    Ok(())
}

/// One rule is taken away and given back under a client that never stops asking. Milliseconds until it has another answer.
fn changes(
    plan: &Plan,
    rules: usize,
    name: &'static str,
    contender: &mut dyn Contender,
    figures: &mut Figures,
) -> Result<()> {
    let mut worker = contender.place().worker(SWITCH)?;
    let mut samples = Vec::new();
    for change in 0..2 * plan.rounds(2, 10) {
        let open = change % 2 == 1;
        worker.send(&Order::Turn { to: at(SWITCH) })?;
        std::thread::sleep(BEFORE);
        let began = contender.switch(open)?;
        let done = worker.wait()?;
        ensure!(
            (done.errno == 0) == open,
            "a rule was {}, and the answer is {}",
            if open { "given back" } else { "taken away" },
            answer(done.errno)
        );
        samples.push(done.at.saturating_sub(began) as f64 / 1e6);
        contender.settle()?;
    }
    figures.add(Measure::Change, rules, name, &samples, None);
    Ok(())
}
