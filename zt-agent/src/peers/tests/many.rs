// SPDX-License-Identifier: Apache-2.0
//! One node among many: all of them dial it, and tell of their residents. `ZT_PEERS=500` for as many as a large cluster has.

use std::time::Instant;

use super::*;

/// Without the variable: enough to see that all of them get through.
const FEW: usize = 24;
/// Handshakes at a time of one address.
const SHARE: usize = 64;
/// Residents of each.
const EACH: usize = 100;

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("the kernel says");
    let pages: usize = text
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_hears_of_all_that_live_on_many_others() {
    let count: usize = std::env::var("ZT_PEERS").map_or(FEW, |text| text.parse().expect("a number"));
    let names: Vec<String> = (0..count).map(|index| format!("n{index:04}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("z");
    let mut world = World::new(&all, "*");
    for (index, neighbour) in world.neighbours.iter_mut().enumerate() {
        let (high, low) = (index / 250, index % 250);
        neighbour.speaks_for = vec![format!("10.{high}.{low}.0/24").parse().expect("a network")];
    }
    let before = resident();
    let z = world.start("z", HashMap::new());
    let only_z = || {
        let z = world.neighbours.last().cloned().expect("the last one");
        Roster::new([z], PATTERN, "other", &[]).expect("a roster")
    };
    let others: Vec<Agent> = names
        .iter()
        .map(|name| world.start_among(name, only_z(), HashMap::new()))
        .collect();
    let made = Instant::now();
    for (index, other) in others.iter().enumerate() {
        let (high, low) = (index / 250, index % 250);
        let residents: Vec<(String, String)> = (1..=EACH)
            .map(|last| (format!("10.{high}.{low}.{last}"), format!("w{}", last % 20)))
            .collect();
        let residents: Vec<(&str, &str)> = residents
            .iter()
            .map(|(address, name)| (address.as_str(), name.as_str()))
            .collect();
        other.says(&residents);
    }
    z.until("all are known", |kernel| {
        kernel.at.len() == count * EACH && kernel.uses.len() == count
    })
    .await;
    let known = made.elapsed();
    let status = z.health.status();
    // All of them are at one address here: more than it has a share for may crowd each other out for a moment.
    let may_crowd = |cause: &str| count > SHARE && cause == "crowded";
    let mut refused = status.refused.iter().filter(|(cause, _)| !may_crowd(cause));
    assert!(refused.all(|(_, count)| *count == 0), "{:?}", status.refused);
    // What one of them changes is heard beside all that.
    let changed = Instant::now();
    others[0].says(&[("10.0.0.7", "new")]);
    z.until_who("10.0.0.7", Some("w/new")).await;
    println!(
        "{count} nodes, {} addresses: known after {known:?}; a change after {:?}; {} KiB a connection, both ends and the tables",
        count * EACH,
        changed.elapsed(),
        (resident().saturating_sub(before)) / 1024 / count
    );
}
