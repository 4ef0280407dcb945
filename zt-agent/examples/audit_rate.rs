// SPDX-License-Identifier: Apache-2.0
//! How many decisions a second the audit pipeline stores, through a real file.
//!
//! `cargo run --release -p zt-agent --example audit_rate -- [records] [identities] [directory] [max megabytes]`

use std::sync::Arc;
use std::time::Instant;

use zt_agent::audit::pipeline::{self, pipeline};
use zt_agent::audit::query::{Filter, GraphFilter};
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink;
use zt_agent::audit::{Decision, Directory, NameBook, RuleTexts};
use zt_common::address::Address;
use zt_common::event::Hook;
use zt_common::verdict::Reason;

fn decision(number: u64, identities: u64, time: u64) -> Decision {
    // A linear congruential step: as spread as it needs to be.
    let random = number
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
        >> 33;
    let (source, destination) = (random % identities, (random / identities) % identities);
    let allowed = !random.is_multiple_of(10);
    Decision {
        time,
        source: (1 << 40) + source,
        destination: (1 << 40) + destination,
        rule: if allowed { (1 << 50) + destination } else { 0 },
        revision: 7,
        workload: 1000 + source,
        cookie: number,
        netns: 1,
        source_address: Address::from_v4([10, 99, 0, source as u8]),
        destination_address: Address::from_v4([10, 99, 1, destination as u8]),
        source_port: 0,
        destination_port: 5432,
        target_port: 5432,
        protocol: 6,
        hook: Hook::Connect,
        pid: 4000 + source as u32,
        latency: 400 + (random % 300) as u32,
        reason: if allowed { Reason::Rule } else { Reason::NoRule },
        proof: zt_common::proof::Proof::None,
        omitted: false,
        allowed,
        enforced: true,
        inbound: false,
        refused_socket: false,
        ipv6: false,
        comm: *b"gateway\0\0\0\0\0\0\0\0\0",
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: f64 = stat
        .split(' ')
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

#[derive(Debug)]
struct Rules(Vec<(u64, Arc<str>)>);

impl RuleTexts for Rules {
    fn get(&self, number: u64) -> Option<Arc<str>> {
        let place = usize::try_from(number.checked_sub(1 << 50)?).ok()?;
        self.0.get(place).map(|(_, text)| Arc::clone(text))
    }

    fn has(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    fn numbers(&self) -> Box<dyn Iterator<Item = u64> + '_> {
        Box::new(self.0.iter().map(|(number, _)| *number))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let mut argument = |default: &str| words.next().unwrap_or_else(|| default.to_owned());
    let (records, identities): (u64, u64) = (argument("1000000").parse()?, argument("20").parse()?);
    let directory = tempfile::tempdir_in(argument("/var/tmp"))?;
    let megabytes: u64 = argument("2048").parse()?;
    let settings = Settings {
        dsn: format!("sqlite://{}", directory.path().join("audit.db").display()),
        max_disk_bytes: megabytes << 20,
        retention_days: Some(365),
        keys: None,
        sync: Durability::default(),
    };
    let store = Arc::new(Store::open(settings).await?);
    let names = Arc::new(NameBook::default());
    let numbered = |base: u64, prefix: &str| -> Vec<(u64, Arc<str>)> {
        (0..identities)
            .map(|n| (base + n, Arc::from(format!("{prefix}{n}"))))
            .collect()
    };
    names.update(&Directory {
        identities: numbered(1 << 40, "spiffe://hanzo.ai/hanzo-k8s/hanzo/workload-"),
        rules: Arc::new(Rules(numbered(1 << 50, "hanzo-core-policy/rule-"))),
        workloads: Vec::new(),
    });
    let (intake, recorder) = pipeline(
        Arc::clone(&store),
        names,
        Arc::new(()),
        pipeline::Settings::new("hanzo-k8s", "worker-3"),
    );
    let running = tokio::spawn(recorder.run());

    let (start, cpu) = (Instant::now(), cpu_seconds());
    let feeder = intake.clone();
    std::thread::spawn(move || -> Result<(), pipeline::Closed> {
        for first in (0..records).step_by(256) {
            let time = first * 10_000;
            let mut chunk = (first..records.min(first + 256))
                .map(|n| decision(n, identities, time))
                .collect();
            while feeder.submit(&mut chunk, None)? == pipeline::Handed::NoRoom {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
        Ok(())
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the feeding thread failed"))??;
    intake.flush().await?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let bytes = std::fs::metadata(store.path())?.len();
    println!(
        "{records} records, {identities} identities: {:.0} records/s, {:.2} us CPU each, {} bytes each, losses {:?}",
        records as f64 / seconds,
        cpu * 1e6 / records as f64,
        bytes / records,
        intake.stats().losses()
    );
    println!(
        "{:?}, pruned (space, age) {:?}",
        store.totals().await?,
        intake.stats().pruned_total()
    );

    for (what, filter) in [
        ("newest 100", Filter::default()),
        (
            "port nobody uses",
            Filter {
                port: Some(1),
                ..Filter::default()
            },
        ),
        (
            "denied of one policy",
            Filter {
                policy: Some("hanzo-core-policy".into()),
                ..Filter::default()
            },
        ),
    ] {
        let start = Instant::now();
        let found = store.query(&filter, None, 100).await?.records.len();
        println!("query, {what}: {found} records in {:?}", start.elapsed());
    }
    let start = Instant::now();
    println!(
        "graph: {} edges in {:?}",
        store.graph(&GraphFilter::default()).await?.edges.len(),
        start.elapsed()
    );
    let start = Instant::now();
    println!(
        "one look at the limits: {:?} in {:?}",
        store.prune().await?,
        start.elapsed()
    );
    intake.shut_down(std::time::Duration::from_secs(1));
    running.await?;
    Ok(())
}
