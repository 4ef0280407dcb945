// SPDX-License-Identifier: Apache-2.0
//! Decisions in user space: by a call, and over the API.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use zt_agent::policy::{AllowTable, Document, Settings, compile, parse};
use zt_common::entry::Flow;

use crate::Plan;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{World, filled, filler, id};

const ENTRIES: usize = 100_000;
/// Decisions of one batch.
const COUNT: usize = 1_000_000;

/// By a call, from one thread and from all.
pub(crate) fn in_process(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let document = |(file, text)| Document { file, text };
    let documents: Vec<Document> = filler(ENTRIES).into_iter().map(document).collect();
    let settings = Settings::default();
    let Ok(set) = parse(&documents, &settings) else {
        bail!("the filler policy does not parse")
    };
    let table = Arc::new(compile(&set, &BTreeSet::new(), &settings, 1)?);
    let flows = Arc::new(flows(&table));
    let cpus = thread::available_parallelism()?.get();
    let mut single = None;
    for threads in [1, cpus] {
        let mut samples = Vec::new();
        for _ in 0..plan.rounds(5, 11) {
            let start = Instant::now();
            let workers: Vec<_> = (0..threads)
                .map(|number| {
                    let (table, flows) = (Arc::clone(&table), Arc::clone(&flows));
                    thread::spawn(move || decide(&table, &flows, number))
                })
                .collect();
            let mut allowed = 0;
            for worker in workers {
                allowed += worker.join().unwrap_or(0);
            }
            ensure!(allowed > 0, "nothing was allowed");
            samples.push(start.elapsed().as_nanos() as f64 / (COUNT * threads) as f64);
        }
        let summary = Summary::of(&samples);
        let median = summary.map(|summary| summary.median);
        let name = format!("in-process evaluate, {ENTRIES} entries, {threads} thread(s), time for each");
        let mut metric = Metric::summed(name, "ns", summary);
        if threads == 1 {
            single = median;
            metric = metric.target(Target::AtMost(300.0));
        } else {
            metric.ratio = median.zip(single).map(|(many, single)| many / single);
        }
        metrics.push(metric);
        if cpus == 1 {
            break;
        }
    }
    Ok(())
}

/// Half of them allowed, in an order that no cache foresees.
fn flows(table: &AllowTable) -> Vec<Flow> {
    let mut flows: Vec<Flow> = table
        .entries()
        .filter(|(key, _)| key.protocol != 0)
        .enumerate()
        .map(|(number, (key, _))| Flow {
            source: key.source,
            destination: key.destination,
            port: if number.is_multiple_of(2) {
                key.port
            } else {
                key.port + 1
            },
            protocol: key.protocol,
        })
        .collect();
    flows.sort_unstable_by_key(|flow| (flow.source ^ flow.destination).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    flows
}

fn decide(table: &AllowTable, flows: &[Flow], offset: usize) -> usize {
    let turn = flows.iter().cycle().skip(offset * flows.len() / 3).take(COUNT);
    turn.filter(|flow| black_box(table.decide(black_box(flow))).allowed)
        .count()
}

/// Over the API, on connections that are kept.
pub(crate) fn over_http(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let world = World::start("evaluate", |_, builder| filled(builder, ENTRIES))?;
    let one = |number: usize| {
        json!({
            "source": {"spiffe_id": id(&format!("a/{}", number % 1000))},
            "destination": {"spiffe_id": id(&format!("b/{}", number % 100)), "port": 1, "protocol": "TCP"},
        })
    };
    let duration = Duration::from_secs(if plan.quick { 1 } else { 5 });
    let single = request(world.agent.api(), &one(7).to_string());
    for (connections, depth) in [(1, 1), (32, 1), (8, 16)] {
        let rate = rate(world.agent.api(), &single, connections, depth, duration)?;
        let name =
            format!("HTTP evaluate, {connections} connection(s), {depth} request(s) under way on each");
        let mut metric = Metric::value(name, "/s", rate);
        if connections > 1 {
            metric = metric.target(Target::AtLeast(50_000.0));
        }
        metrics.push(metric);
    }
    let many: Vec<_> = (0..100).map(one).collect();
    let batch = request(world.agent.api(), &json!({ "requests": many }).to_string());
    let rate = 100.0 * rate(world.agent.api(), &batch, 4, 1, duration)?;
    metrics.push(Metric::value(
        "HTTP evaluate, 4 connections, 100 decisions a request",
        "/s",
        rate,
    ));
    Ok(())
}

fn request(server: SocketAddr, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v1/evaluate HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Requests answered each second: one thread sends to all connections, then reads from all.
fn rate(
    server: SocketAddr,
    request: &[u8],
    connections: usize,
    depth: usize,
    duration: Duration,
) -> Result<f64> {
    let open = |_| {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(BufReader::with_capacity(64 * 1024, stream))
    };
    let mut streams = (0..connections).map(open).collect::<Result<Vec<_>>>()?;
    let requests = request.repeat(depth);
    let mut line = Vec::new();
    let mut body = Vec::new();
    let start = Instant::now();
    let mut answered = 0_u64;
    while start.elapsed() < duration {
        for stream in &mut streams {
            stream.get_mut().write_all(&requests)?;
        }
        for stream in &mut streams {
            for _ in 0..depth {
                read_answer(stream, &mut line, &mut body)?;
                answered += 1;
            }
        }
    }
    Ok(answered as f64 / start.elapsed().as_secs_f64())
}

/// Reads one answer, whose status must be 200.
fn read_answer(stream: &mut BufReader<TcpStream>, line: &mut Vec<u8>, body: &mut Vec<u8>) -> Result<()> {
    const LENGTH: &[u8] = b"content-length:";
    let mut length = None;
    let mut first = true;
    loop {
        line.clear();
        ensure!(
            stream.read_until(b'\n', line)? > 0,
            "the API closed the connection"
        );
        let text = line.trim_ascii();
        if first && !text.starts_with(b"HTTP/1.1 200") {
            bail!("the API answered {}", String::from_utf8_lossy(text));
        }
        first = false;
        if text.is_empty() {
            break;
        }
        if text.len() > LENGTH.len() && text[..LENGTH.len()].eq_ignore_ascii_case(LENGTH) {
            length = std::str::from_utf8(text[LENGTH.len()..].trim_ascii())?
                .parse()
                .ok();
        }
    }
    body.resize(length.context("the answer has no Content-Length")?, 0);
    stream.read_exact(body)?;
    Ok(())
}
