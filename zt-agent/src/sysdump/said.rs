// SPDX-License-Identifier: Apache-2.0
//! What the agent says of itself.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use super::archive::Archive;
use crate::cli::client::{ApiArgs, Client};
use crate::config::Config;
use crate::doctor::ask;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked at its API, and what the answer is called.
const ANSWERS: [(&str, &str); 8] = [
    ("/v1/status", "agent/status.json"),
    ("/v1/policies", "agent/policies.json"),
    ("/v1/identities", "agent/identities.json"),
    ("/v1/rollout", "agent/rollout.json"),
    ("/v1/audit?decision=DENY&limit=200", "agent/denied.json"),
    ("/v1/audit?type=policy_change&limit=50", "agent/changes.json"),
    ("/v1/audit?type=mode_change&limit=50", "agent/mode_changes.json"),
    (
        "/v1/audit?type=identity_change&limit=50",
        "agent/identity_changes.json",
    ),
];

pub(super) async fn gather<W: Write>(archive: &mut Archive<W>, config: &Config) -> io::Result<()> {
    let mut silent: Option<String> = None;
    for (path, name) in ANSWERS {
        // One that does not answer once is not waited for again and again; its database may be away.
        if let Some(why) = &silent {
            archive.missing(name, why);
            continue;
        }
        let answer = ask(config, path).await;
        silent = answer
            .as_ref()
            .err()
            .filter(|_| path == "/v1/status" || path.starts_with("/v1/audit"))
            .cloned();
        archive.json_or_why(name, answer)?;
    }
    for (path, name) in [
        ("/readyz", "agent/readyz.json"),
        ("/metrics", "agent/metrics.txt"),
    ] {
        archive.text_or_why(name, health(config, path).await)?;
    }
    Ok(())
}

async fn health(config: &Config, path: &str) -> Result<String, String> {
    let address = reachable(config.api.health);
    let arguments = ApiArgs {
        api: format!("http://{address}"),
        ..ApiArgs::default()
    };
    let client = Client::new(&arguments).map_err(|error| error.to_string())?;
    match timeout(PATIENCE, client.text(path)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("{address} does not answer within {PATIENCE:?}")),
    }
}

/// Where a server that listens at every address is reached from its own machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_reached_on_loopback() {
        let of = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(of("0.0.0.0:8055"), "127.0.0.1:8055");
        assert_eq!(of("[::]:8055"), "[::1]:8055");
        assert_eq!(of("10.0.0.1:8055"), "10.0.0.1:8055");
    }
}
