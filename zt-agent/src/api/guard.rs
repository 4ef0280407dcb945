// SPDX-License-Identifier: Apache-2.0
//! Who is served: not web pages, not callers without the role, not those who ask for too much.

mod origin;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use super::caller::Caller;
use super::problem::ApiProblem;
use crate::caller::Act;
use crate::metrics::Metrics;

/// How often, in requests, callers who have been quiet are forgotten: one who has been quiet for a second has the whole
/// rate again, so that nobody gains by it.
const FORGET_EVERY: u32 = 4096;

/// Decides who is served.
#[derive(Debug)]
pub struct Guard {
    rates: RateLimiter<Arc<str>, DashMapStateStore<Arc<str>>, DefaultClock>,
    clock: DefaultClock,
    per_second: NonZeroU32,
    checks: AtomicU32,
    metrics: Arc<Metrics>,
}

/// What a caller may still ask, for handlers that know how much a request asks for.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    pub(super) guard: Arc<Guard>,
    pub(super) account: Arc<str>,
}

impl Allowance {
    /// Takes that many questions beside the one that every request is.
    pub(super) fn take(&self, more: usize) -> Result<(), ApiProblem> {
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        match NonZeroU32::new(more) {
            None => Ok(()),
            // With the request itself they are more than there ever is room for.
            Some(more) if more >= self.guard.per_second => Err(self.guard.never()),
            Some(more) => self.guard.check_rate(&self.account, more),
        }
    }
}

impl Guard {
    /// A guard that lets each caller ask that many questions a second. A request is one; a batch is as many as it has.
    /// Refusals are counted in `metrics`.
    pub fn new(per_second: NonZeroU32, metrics: Arc<Metrics>) -> Self {
        Self {
            rates: RateLimiter::dashmap(Quota::per_second(per_second)),
            clock: DefaultClock::default(),
            per_second,
            checks: AtomicU32::new(0),
            metrics,
        }
    }

    /// Counts somebody who was refused.
    pub(super) fn refused(&self, cause: &'static str) {
        self.metrics.api_refused(cause);
    }

    /// Whether a request is served.
    pub(super) fn check<B>(&self, caller: &Caller, request: &Request<B>) -> Result<(), ApiProblem> {
        self.check_rate(&caller.account, NonZeroU32::MIN)?;
        if caller.over_loopback && !names_loopback(request.headers()) {
            let detail = "the Host header must name localhost or a loopback address";
            return Err(self.forbidden("host_refused", detail));
        }
        if origin::is_of_another_site(request) {
            let detail = "a page of another site sent this: only the page at `/` may ask from a browser";
            return Err(self.forbidden("origin_refused", detail));
        }
        if caller.has_expired() {
            let detail = "the certificate of this connection has expired: connect with a new one";
            return Err(self.forbidden("certificate_expired", detail));
        }
        let act = act_of(request.method(), request.uri().path());
        if caller.rights.allow(act) {
            return Ok(());
        }
        if caller.rights.is_empty() {
            let detail = format!("no entry of api.callers is about {}", caller.name);
            return Err(self.forbidden("caller_unknown", detail));
        }
        let detail = format!(
            "this takes the role {}, and {} has `{}`",
            roles_for(act),
            caller.name,
            caller.rights.names()
        );
        Err(self.forbidden("role_insufficient", detail))
    }

    /// The refusal of a request that this caller may not make, counted under its code.
    fn forbidden(&self, code: &'static str, detail: impl Into<String>) -> ApiProblem {
        self.refused(code);
        ApiProblem::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// The refusal of a batch that waiting does not help.
    fn never(&self) -> ApiProblem {
        self.refused(TOO_MANY);
        let detail = format!(
            "a batch of more questions than api.rateLimit ({}) lets a caller ask in a second: send smaller batches",
            self.per_second
        );
        ApiProblem::new(StatusCode::TOO_MANY_REQUESTS, TOO_MANY, detail)
    }

    fn check_rate(&self, account: &Arc<str>, questions: NonZeroU32) -> Result<(), ApiProblem> {
        if self.checks.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.rates.retain_recent();
        }
        let until = match self.rates.check_key_n(account, questions) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(until)) => until,
            Err(_) => return Err(self.never()),
        };
        self.refused(TOO_MANY);
        let wait: Duration = until.wait_time_from(self.clock.now());
        let seconds = wait.as_secs() + 1;
        let detail = format!("{account} asks too much: try again in {seconds} s");
        Err(ApiProblem::new(StatusCode::TOO_MANY_REQUESTS, TOO_MANY, detail).with_retry_after(seconds))
    }
}

/// The code of a refusal for the rate, and the cause that it is counted under.
const TOO_MANY: &str = "too_many_requests";

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

/// Whether a request names a loopback host.
///
/// A page in a browser on this machine can have its own name resolve to 127.0.0.1 (DNS rebinding); its requests then
/// come from here, but still bear that name.
fn names_loopback(headers: &HeaderMap) -> bool {
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
        let guard = Guard::new(NonZeroU32::new(2).expect("not zero"), Metrics::new());
        let (one, other) = (Caller::process(1, None), Caller::process(2, None));
        let ask = |caller: &Caller| guard.check(caller, &request(Method::GET, "/v1/status", "x"));
        assert!(ask(&one).is_ok() && ask(&one).is_ok());
        assert!(ask(&one).is_err(), "the third within a second");
        assert!(ask(&other).is_ok());
    }

    #[test]
    fn a_batch_costs_what_it_asks() {
        let metrics = Metrics::new();
        let guard = Arc::new(Guard::new(
            NonZeroU32::new(10).expect("not zero"),
            Arc::clone(&metrics),
        ));
        let of = |account: &str| Allowance {
            guard: Arc::clone(&guard),
            account: Arc::from(account),
        };
        assert!(of("one").take(0).is_ok() && of("one").take(9).is_ok());
        assert!(
            of("one").take(0).is_ok(),
            "no more than its request, which is counted before"
        );
        assert!(of("one").take(9).is_err(), "within the same second");
        assert!(of("other").take(9).is_ok());
        // A batch that the rate never has room for is told so, and costs nothing.
        assert!(of("third").take(10).is_err() && of("third").take(9).is_ok());
        let text = metrics.encode().expect("text");
        assert!(
            text.contains("zt_api_refused_total{cause=\"too_many_requests\"} 2"),
            "{text}"
        );
    }

    #[test]
    fn each_refusal_is_counted_under_its_code() {
        let metrics = Metrics::new();
        let guard = Guard::new(NonZeroU32::MAX, Arc::clone(&metrics));
        let from_here = Caller::loopback(std::net::SocketAddr::from(([127, 0, 0, 1], 1)), Some(1));
        let expired = Caller {
            expires: Some(1),
            ..Caller::process(0, None)
        };
        let nobody = Caller {
            rights: Arc::default(),
            ..Caller::process(0, None)
        };
        let id = SpiffeId::parse("spiffe://hanzo.ai/x").expect("an ID");
        let rule = CallerRule {
            spiffe: Pattern::Any,
            role: Role::Evaluate,
            node: None,
        };
        let asks = Caller {
            rights: Arc::new(Rights::of(&[rule], &id)),
            ..Caller::process(0, None)
        };
        for (caller, cause) in [
            (from_here, "host_refused"),
            (expired, "certificate_expired"),
            (nobody, "caller_unknown"),
            (asks, "role_insufficient"),
        ] {
            let sample = |count: u32| format!("zt_api_refused_total{{cause=\"{cause}\"}} {count}\n");
            let text = metrics.encode().expect("text");
            assert!(text.contains(&sample(0)), "{text}");
            assert!(
                guard
                    .check(&caller, &request(Method::PUT, "/v1/policies/x", "evil.example"))
                    .is_err()
            );
            let text = metrics.encode().expect("text");
            assert!(text.contains(&sample(1)), "{text}");
        }
    }

    #[test]
    fn made_up_accounts_are_forgotten() {
        let guard = Guard::new(NonZeroU32::MAX, Metrics::new());
        for n in 0..5 * FORGET_EVERY {
            let account: Arc<str> = Arc::from(format!("uid:{n}"));
            guard
                .check_rate(&account, NonZeroU32::MIN)
                .expect("nobody asks much");
        }
        assert!(
            guard.rates.len() <= 2 * FORGET_EVERY as usize,
            "{}",
            guard.rates.len()
        );
    }

    #[test]
    fn a_role_opens_what_it_is_for_and_nothing_else() {
        let guard = Guard::new(NonZeroU32::MAX, Metrics::new());
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
