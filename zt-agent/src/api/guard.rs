// SPDX-License-Identifier: Apache-2.0
//! Keeps web pages away from the API.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::ApiProblem;

/// Serves only requests that name a loopback host.
///
/// A page in a browser on this machine can have its own name resolve to 127.0.0.1 (DNS rebinding); its requests then
/// come from here, but still bear that name.
pub(super) async fn loopback_names_only(request: Request, next: Next) -> Response {
    if names_loopback(request.headers()) {
        return next.run(request).await;
    }
    let detail = "the Host header must name localhost or a loopback address";
    ApiProblem::new(StatusCode::FORBIDDEN, "host_refused", detail).into_response()
}

fn names_loopback(headers: &HeaderMap) -> bool {
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
}
