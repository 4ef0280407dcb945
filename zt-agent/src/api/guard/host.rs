// SPDX-License-Identifier: Apache-2.0
//! What a request calls the host that it goes to.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::api::caller::Caller;
use crate::api::problem::ApiProblem;

/// The code of a refusal for that, and the cause that it is counted under.
pub(in crate::api) const REFUSED: &str = "host_refused";
/// What is said of it.
pub(super) const DETAIL: &str = "the Host header must name localhost or a loopback address";

/// Whether somebody may ask for health and metrics. What comes to an address of the network may, by whatever name: probes and
/// Prometheus do, and who is there could ask by the address as well. What comes to a loopback address may be a browser here that was
/// led to it.
pub(in crate::api) fn check_health(caller: &Caller, headers: &HeaderMap) -> Result<(), ApiProblem> {
    if caller.over_loopback && !names_loopback(headers) {
        return Err(ApiProblem::new(StatusCode::FORBIDDEN, REFUSED, DETAIL));
    }
    Ok(())
}

/// Whether a request names a loopback host.
///
/// A page in a browser on this machine can have its own name resolve to 127.0.0.1 (DNS rebinding); its requests then
/// come from here, but still bear that name.
pub(super) fn names_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    // What nearly everybody writes needs no parsing.
    if host
        .and_then(|host| host.strip_prefix(b"127.0.0.1:"))
        .is_some_and(is_port)
    {
        return true;
    }
    let authority = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        bare.eq_ignore_ascii_case("localhost")
            || bare
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.to_canonical().is_loopback())
    })
}

/// Whether it is a port and nothing else.
fn is_port(text: &[u8]) -> bool {
    (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_loopback() {
        let with = |host: &str| HeaderMap::from_iter([(header::HOST, host.parse().expect("value"))]);
        for host in [
            "localhost:8054",
            "LOCALHOST",
            "127.0.0.1:8054",
            "127.9.9.9",
            "[::1]:8054",
        ] {
            assert!(names_loopback(&with(host)), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8054",
            "10.0.0.1",
            "",
            "[::2]",
        ] {
            assert!(!names_loopback(&with(host)), "{host}");
        }
        assert!(!names_loopback(&HeaderMap::new()));
    }

    #[test]
    fn health_is_told_to_the_network_and_to_no_page_of_this_machine() {
        let asks = |over_loopback, host: &str| {
            let caller = Caller {
                over_loopback,
                ..Caller::process(0, None)
            };
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().expect("value"))]);
            check_health(&caller, &headers).is_ok()
        };
        for host in ["127.0.0.1:8055", "localhost", "localhost:8055", "[::1]:8055"] {
            assert!(asks(true, host) && asks(false, host), "{host}");
        }
        for host in [
            "rebound.example:8055",
            "10.0.0.7:8055",
            "[fd00::7]:8055",
            "zt-metrics.zt-system:8055",
        ] {
            assert!(!asks(true, host), "{host}");
            // Probes of the kubelet name the address of the node or the pod.
            assert!(asks(false, host), "{host}");
        }
    }
}
