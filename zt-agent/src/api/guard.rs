// SPDX-License-Identifier: Apache-2.0
//! Who is served: not web pages, not callers without the role, not those who ask for too much.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use super::caller::Caller;
use super::problem::ApiProblem;
use crate::caller::Act;

/// Callers that are remembered before those who have been quiet are forgotten.
const MAX_ACCOUNTS: usize = 4096;

/// Decides who is served.
#[derive(Debug)]
pub struct Guard {
    rates: RateLimiter<Arc<str>, DashMapStateStore<Arc<str>>, DefaultClock>,
    clock: DefaultClock,
}

impl Guard {
    /// A guard that lets each caller send that many requests a second.
    pub fn new(requests_per_second: NonZeroU32) -> Self {
        Self {
            rates: RateLimiter::dashmap(Quota::per_second(requests_per_second)),
            clock: DefaultClock::default(),
        }
    }

    /// Whether a request is served.
    pub(super) fn check<B>(&self, caller: &Caller, request: &Request<B>) -> Result<(), ApiProblem> {
        self.check_rate(caller)?;
        if caller.over_loopback && !names_loopback(request.headers()) {
            let detail = "the Host header must name localhost or a loopback address";
            return Err(ApiProblem::new(StatusCode::FORBIDDEN, "host_refused", detail));
        }
        if caller.expires.is_some_and(|expires| expires < now()) {
            let detail = "the certificate of this connection has expired: connect with a new one";
            return Err(ApiProblem::new(
                StatusCode::FORBIDDEN,
                "certificate_expired",
                detail,
            ));
        }
        let act = act_of(request.method(), request.uri().path());
        if caller.rights.allow(act) {
            return Ok(());
        }
        if caller.rights.is_empty() {
            let detail = format!("no entry of api.callers is about {}", caller.name);
            return Err(ApiProblem::new(StatusCode::FORBIDDEN, "caller_unknown", detail));
        }
        let detail = format!(
            "this takes the role {}, and {} has `{}`",
            roles_for(act),
            caller.name,
            caller.rights.names()
        );
        Err(ApiProblem::new(
            StatusCode::FORBIDDEN,
            "role_insufficient",
            detail,
        ))
    }

    fn check_rate(&self, caller: &Caller) -> Result<(), ApiProblem> {
        let Err(until) = self.rates.check_key(&caller.account) else {
            return Ok(());
        };
        if self.rates.len() > MAX_ACCOUNTS {
            self.rates.retain_recent();
        }
        let wait: Duration = until.wait_time_from(self.clock.now());
        let seconds = wait.as_secs() + 1;
        let detail = format!(
            "{} sends too many requests: try again in {seconds} s",
            caller.account
        );
        Err(
            ApiProblem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
                .with_retry_after(seconds),
        )
    }
}

/// What a request does.
fn act_of(method: &Method, path: &str) -> Act {
    match (method, path) {
        (&Method::POST, "/v1/evaluate") | (&Method::GET, "/openapi.json") => Act::Evaluate,
        (&Method::GET | &Method::HEAD, "/v1/policies" | "/v1/revisions/stream") => Act::Follow,
        (&Method::PUT, path) if path.starts_with("/v1/nodes/") => Act::Report,
        (&Method::GET | &Method::HEAD, _) => Act::Read,
        _ => Act::Change,
    }
}

/// Who may do that, least first, for messages.
const fn roles_for(act: Act) -> &'static str {
    match act {
        Act::Evaluate => "`evaluate`",
        Act::Follow => "`follow` or `read`",
        Act::Report => "`follow`",
        Act::Read => "`read`",
        Act::Change => "`admin`",
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whether a request names a loopback host.
///
/// A page in a browser on this machine can have its own name resolve to 127.0.0.1 (DNS rebinding); its requests then
/// come from here, but still bear that name.
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
    use crate::caller::{CallerRule, Rights, Role};
    use crate::spiffe_id::{Pattern, SpiffeId};

    fn request(method: Method, path: &str, host: &str) -> Request<()> {
        let builder = Request::builder().method(method).uri(path);
        builder.header(header::HOST, host).body(()).expect("request")
    }

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
    fn each_caller_has_a_rate_of_its_own() {
        let guard = Guard::new(NonZeroU32::new(2).expect("not zero"));
        let (one, other) = (Caller::process(1, None), Caller::process(2, None));
        let ask = |caller: &Caller| guard.check(caller, &request(Method::GET, "/v1/status", "x"));
        assert!(ask(&one).is_ok() && ask(&one).is_ok());
        assert!(ask(&one).is_err(), "the third within a second");
        assert!(ask(&other).is_ok());
    }

    #[test]
    fn a_role_opens_what_it_is_for_and_nothing_else() {
        let guard = Guard::new(NonZeroU32::MAX);
        let id = SpiffeId::parse("spiffe://hanzo.ai/nodes/one").expect("an ID");
        let served = |role: Option<Role>| {
            let rule = role.map(|role| CallerRule {
                spiffe: Pattern::Exact(id.clone()),
                role,
                node: None,
            });
            let rights = Rights::of(rule.as_slice(), &id);
            let caller = Caller {
                rights: Arc::new(rights),
                ..Caller::process(0, None)
            };
            [
                (Method::POST, "/v1/evaluate"),
                (Method::GET, "/v1/policies"),
                (Method::GET, "/v1/revisions/stream"),
                (Method::PUT, "/v1/nodes/one"),
                (Method::GET, "/v1/policies/x"),
                (Method::GET, "/v1/audit"),
                (Method::GET, "/v1/decisions/stream"),
                (Method::PUT, "/v1/policies/x"),
                (Method::POST, "/v1/mode"),
                (Method::DELETE, "/v1/nodes/one"),
                (Method::DELETE, "/anything"),
            ]
            .map(|(method, path)| guard.check(&caller, &request(method, path, "x")).is_ok())
            .map(u8::from)
        };
        assert_eq!(served(None), [0; 11]);
        assert_eq!(served(Some(Role::Evaluate)), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(served(Some(Role::Follow)), [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(served(Some(Role::Read)), [1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(served(Some(Role::Admin)), [1; 11]);
        let expired = Caller {
            expires: Some(1),
            ..Caller::process(0, None)
        };
        assert!(
            guard
                .check(&expired, &request(Method::GET, "/v1/status", "x"))
                .is_err()
        );
    }
}
