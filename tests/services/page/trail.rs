// SPDX-License-Identifier: Apache-2.0
//! A trail of many services, some of which have names that nobody gave them in good faith.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use uuid::Uuid;
use zt_agent::audit::record::Entry;
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink as _;

/// Names that are markup, scripts, or look like others.
const ODD: [&str; 4] = [
    "<img src=x onerror=pwned()>",
    "<script>window.pwned=1</script>",
    "\"><b onmouseover=pwned()>",
    "turned\u{202e}around",
];

/// Makes the file of a trail, with connections of the last hour between that many services.
pub(crate) fn fill(path: &Path, services: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = Store::open(Settings {
            dsn: format!("sqlite://{}", path.display()),
            max_disk_bytes: 1 << 30,
            retention_days: None,
            keys: None,
            sync: Durability::default(),
        })
        .await?;
        store.append(&entries(services)?, None).await?;
        store.close().await?;
        Ok(())
    })
}

/// How many connections of that trail were allowed, all of them by `core/rule-1`.
pub(crate) fn allowed(services: u32) -> Result<usize> {
    let entries = entries(services)?;
    let decisions = entries.iter().filter_map(Entry::decision);
    Ok(decisions.filter(|record| record.policy_matched.is_some()).count())
}

fn entries(services: u32) -> Result<Vec<Entry>> {
    let now = Uuid::now_v7().get_timestamp().map_or(0, |time| time.to_unix().0);
    let name = |number: u32| {
        let number = number % services;
        format!("spiffe://hanzo.ai/hanzo-k8s/ns-{}/svc-{number}", number % 11)
    };
    let mut records = Vec::new();
    for number in 0..services {
        for other in [number * 7 + 3, number * 3 + 1, number / 10] {
            records.push(record(
                now,
                &name(number),
                Some(&name(other)),
                other % 40 != 7,
                number % 2 == 0,
            ));
        }
    }
    for odd in ODD {
        records.push(record(now, odd, Some(&name(1)), false, true));
    }
    records.push(record(now, &name(2), None, true, false));
    Ok(records
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?)
}

fn record(now: u64, source: &str, destination: Option<&str>, allowed: bool, enforced: bool) -> Value {
    let party = |name: &str| {
        if name.starts_with("spiffe://") {
            json!({"spiffe_id": name, "entity": null})
        } else {
            json!({"spiffe_id": null, "entity": name})
        }
    };
    let time = time_of(now);
    let mut source = party(source);
    source["pod"] = json!("ns/<b>pod</b>");
    source["node"] = json!("n1");
    source["address"] = json!("10.0.0.1");
    source["port"] = Value::Null;
    source["pid"] = json!(7);
    source["comm"] = json!(ODD[0]);
    let mut destination = party(destination.unwrap_or("world"));
    destination["port"] = json!(5432);
    destination["address"] = json!("10.0.0.2");
    destination["pod"] = Value::Null;
    destination["node"] = json!("n2");
    json!({
        "type": "decision", "id": Uuid::now_v7(), "timestamp": time, "decision": if allowed { "ALLOW" } else { "DENY" },
        "source": source, "destination": destination,
        "policy_matched": if allowed { json!("core/rule-1") } else { Value::Null },
        "reason": if allowed { "rule" } else { "no_rule" }, "latency_us": 1.5, "cluster": "hanzo-k8s",
        "protocol": "TCP", "hook": "connect", "observer": "source",
        "mode": if enforced { "enforce" } else { "observe" }, "enforced": enforced, "revision": 1,
        "proof": "none", "count": 1,
    })
}

/// RFC 3339 of Unix seconds, in the current hour.
fn time_of(seconds: u64) -> String {
    let time = zt_agent::audit::record::Timestamp(i64::try_from(seconds).unwrap_or(0) * 1_000_000_000);
    time.to_string()
}
