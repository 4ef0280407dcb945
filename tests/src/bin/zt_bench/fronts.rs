// SPDX-License-Identifier: Apache-2.0
//! A thousand Services in front of a large cluster's pods.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use zt_common::abi::{Service, ServiceKey};
use zt_common::address::Address;
use zt_common::names;
use zt_tests::KubeApi;

use crate::Plan;
use crate::pods::{ELSEWHERE, LIMIT, address, uid};
use crate::report::Metric;
use crate::samples::Summary;
use crate::world::World;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
/// How many there are.
pub(crate) const COUNT: usize = 1000;
/// Pods behind each.
const BEHIND: usize = 5;

fn front(number: usize) -> [u8; 4] {
    [10, 96, (number / 250) as u8, (number % 250 + 1) as u8]
}

fn text([a, b, c, d]: [u8; 4]) -> String {
    format!("{a}.{b}.{c}.{d}")
}

fn slice(number: usize, from: usize) -> Value {
    let endpoints: Vec<Value> = (0..BEHIND)
        .map(|n| {
            let of = (from + n * 10) % ELSEWHERE;
            json!({
                "addresses": [text(address(1, of))], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": format!("far-{of}"), "uid": uid(of)},
            })
        })
        .collect();
    json!({
        "metadata": {
            "namespace": "services", "name": format!("service-{number}-x"), "uid": format!("slice-{number}"),
            "labels": {"kubernetes.io/service-name": format!("service-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// Puts them into the API.
pub(crate) fn put(api: &KubeApi) {
    for number in 0..COUNT {
        let ip = text(front(number));
        api.put(
            SERVICES,
            json!({
                "metadata": {"namespace": "services", "name": format!("service-{number}"), "uid": format!("service-{number}")},
                "spec": {
                    "clusterIP": ip, "clusterIPs": [ip], "selector": {"app": "any"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            }),
        );
        api.put(SLICES, slice(number, number * 7));
    }
}

/// The map that says who is behind them.
pub(crate) fn map(world: &World) -> Result<HashMap<MapData, ServiceKey, Service>> {
    let pin = world.maps()?.join(names::SERVICES);
    Ok(Map::HashMap(MapData::from_pin(pin)?).try_into()?)
}

/// Others come to stand behind one of them, and again.
pub(crate) fn churn(plan: &Plan, api: &KubeApi, world: &World, metrics: &mut Vec<Metric>) -> Result<()> {
    let map = map(world)?;
    let mut samples = Vec::new();
    for round in 0..plan.rounds(20, 200) {
        let number = round * 13 % COUNT;
        let key = ServiceKey {
            address: Address::from_v4(front(number)),
            port: 80,
            protocol: 6,
            reserved: 0,
        };
        let before = map.get(&key, 0).context("it is known")?.identity;
        // Not by a multiple of ten: pods that many numbers further on have the same names.
        let by = round / 9 * 10 + round % 9 + 1;
        let start = Instant::now();
        api.put(SLICES, slice(number, number * 7 + by));
        while map.get(&key, 0).is_ok_and(|service| service.identity == before) {
            ensure!(
                start.elapsed() < LIMIT,
                "a Service leads to those of before after {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_micros(100));
        }
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    metrics.push(Metric::summed(
        format!("endpoints of one of {COUNT} Services changed → others behind its address"),
        "ms",
        Summary::of(&samples),
    ));
    Ok(())
}
