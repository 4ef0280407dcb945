// SPDX-License-Identifier: Apache-2.0
//! From a process in a new cgroup to the identity that a real SPIRE gives it in the kernel's map, beside what the SPIRE agent
//! itself takes to answer.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::json;
use spire_api::{DelegateAttestationRequest, DelegatedIdentityClient};
use zt_agent::spiffe_id::number_of;
use zt_common::abi::Workload;
use zt_common::names;
use zt_tests::spire::Spire;

use crate::Plan;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{World, filled, id};

const LIMIT: Duration = Duration::from_secs(30);
/// What may be added to the answer of the SPIRE agent, milliseconds.
const OURS: f64 = 10.0;
/// The next process shall not find the agents at work on this one.
const REST: Duration = Duration::from_millis(100);

/// A process that waits, whichever way the measurement ends.
struct Waiting(Child);

impl Waiting {
    fn start(program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("3600").stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(
            command.spawn().context("cannot start a process that waits")?,
        ))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One process after the other, then many at once.
pub(crate) fn attested(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let spire = Spire::start(Duration::from_secs(3600))?;
    let one_hour = ["-x509SVIDTTL", "3600"];
    for delegate in [zt_tests::agent::binary()?, std::env::current_exe()?] {
        let selector = format!("unix:path:{}", delegate.display());
        spire.register(&Spire::delegate(), &[&selector], &one_hour)?;
    }
    let identity = json!({
        "source": "spire", "spireAdminSocket": spire.admin_socket(), "spireSocket": spire.socket(),
    });
    let world = World::start("attested", |_, builder| {
        filled(builder.config("identity", identity), 1000)
    })?;
    let program = world.sandbox.directory().join("waits");
    fs::copy("/bin/sleep", &program)?;
    let name = id("attested");
    spire.register(&name, &[&format!("unix:path:{}", program.display())], &one_hour)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let socket = format!("unix:{}", spire.admin_socket().display());
    let client = runtime.block_on(DelegatedIdentityClient::connect_to(&socket))?;
    let ask = |pid: u32| -> Result<f64> {
        let request = DelegateAttestationRequest::for_pid(pid)?;
        let start = Instant::now();
        let svid = runtime.block_on(client.fetch_x509_svid(request))?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        ensure!(
            svid.spiffe_id().to_string() == name,
            "SPIRE names it {}",
            svid.spiffe_id()
        );
        Ok(took)
    };
    let first = Waiting::start(&program)?;
    let begun = Instant::now();
    while ask(first.0.id()).is_err() {
        ensure!(
            begun.elapsed() < LIMIT,
            "SPIRE does not know the process after {LIMIT:?}"
        );
        std::thread::sleep(REST);
    }
    let pin = world.maps()?.join(names::WORKLOADS);
    let map: HashMap<MapData, u64, Workload> = Map::HashMap(MapData::from_pin(pin)?).try_into()?;
    let known = |cgroup: u64| {
        map.get(&cgroup, 0)
            .is_ok_and(|found| found.identity == number_of(&name))
    };
    let (mut answers, mut moves, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    let mut processes = vec![first];
    for round in 0..plan.rounds(10, 50) {
        let process = Waiting::start(&program)?;
        let cgroup = world.sandbox.cgroup(&format!("one-{round}"))?;
        // The kernel waits for programs that run meanwhile before it moves a process: until then it is not there to be asked about.
        let begun = Instant::now();
        cgroup.add(process.0.id())?;
        let start = Instant::now();
        moves.push((start - begun).as_secs_f64() * 1e3);
        let cgroup = cgroup.id()?;
        while !known(cgroup) {
            ensure!(
                start.elapsed() < LIMIT,
                "the process has no identity after {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        ours.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(REST);
        answers.push(ask(process.0.id())?);
        processes.push(process);
        std::thread::sleep(REST);
    }
    let (answer, identity) = (Summary::of(&answers), Summary::of(&ours));
    metrics.push(Metric::summed(
        "SPIRE: the kernel moves a process into a cgroup",
        "ms",
        Summary::of(&moves),
    ));
    metrics.push(Metric::summed(
        "SPIRE: its agent's answer about a process",
        "ms",
        answer,
    ));
    metrics.push(Metric::summed(
        "SPIRE: the process is in a new cgroup → identity in the map",
        "ms",
        identity,
    ));
    if let (Some(answer), Some(identity)) = (answer, identity) {
        let added = Metric::value(
            "SPIRE: the second less the first, medians",
            "ms",
            identity.median - answer.median,
        );
        metrics.push(added.target(Target::AtMost(OURS)));
    }
    at_once(plan.rounds(50, 300), &world, &program, known, metrics)
}

/// Many processes, each in a cgroup of its own.
fn at_once(
    many: usize,
    world: &World,
    program: &Path,
    known: impl Fn(u64) -> bool,
    metrics: &mut Vec<Metric>,
) -> Result<()> {
    let started: Vec<Waiting> = (0..many)
        .map(|_| Waiting::start(program))
        .collect::<Result<_>>()?;
    let start = Instant::now();
    let mut waiting = Vec::with_capacity(many);
    for (number, process) in started.iter().enumerate() {
        let cgroup = world.sandbox.cgroup(&format!("many-{number}"))?;
        cgroup.add(process.0.id())?;
        waiting.push(cgroup.id()?);
    }
    while !waiting.is_empty() {
        ensure!(
            start.elapsed() < 2 * LIMIT,
            "{} processes have no identity",
            waiting.len()
        );
        waiting.retain(|cgroup| !known(*cgroup));
        std::thread::sleep(Duration::from_millis(1));
    }
    metrics.push(Metric::value(
        format!("SPIRE: {many} processes at once, until the last has its identity"),
        "ms",
        start.elapsed().as_secs_f64() * 1e3,
    ));
    Ok(())
}
