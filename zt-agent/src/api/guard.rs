// SPDX-License-Identifier: Apache-2.0
//! Who is served: not web pages, not callers without the role, not those who ask for too much.

mod host;
mod origin;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::{Method, Request, StatusCode};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

pub(super) use self::host::{REFUSED as HOST_REFUSED, check_health};
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
    /// The account of pages that are not ours.
    pages: Arc<str>,
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
            pages: Arc::from("pages of other sites"),
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
        self.check_page(caller, request)?;
        self.check_rate(&caller.account, NonZeroU32::MIN)?;
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

    /// Refuses what a page of somebody else has a browser send. It comes from the user's own socket and costs them nothing: such
    /// pages have an account of their own, so that none of them can use up the rate of who looks at it.
    fn check_page<B>(&self, caller: &Caller, request: &Request<B>) -> Result<(), ApiProblem> {
        let (code, detail) = if caller.over_loopback && !host::names_loopback(request.headers()) {
            (HOST_REFUSED, host::DETAIL)
        } else if origin::is_of_another_site(request) {
            let detail = "a page of another site sent this: only the page at `/` may ask from a browser";
            ("origin_refused", detail)
        } else {
            return Ok(());
        };
        self.check_rate(&self.pages, NonZeroU32::MIN)?;
        Err(self.forbidden(code, detail))
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
        // What is sent there is judged, and changes nothing.
        (&Method::GET | &Method::HEAD, _) | (&Method::POST, "/v1/replay") => Act::Read,
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

#[cfg(test)]
mod tests;
