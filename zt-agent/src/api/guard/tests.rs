// SPDX-License-Identifier: Apache-2.0
//! Roles, rates, and what refusals cost whom.

use axum::http::{HeaderValue, header};

use super::*;
use crate::caller::{CallerRule, Rights, Role};
use crate::spiffe_id::{Pattern, SpiffeId};

fn request(method: Method, path: &str, host: &str) -> Request<()> {
    let builder = Request::builder().method(method).uri(path);
    builder.header(header::HOST, host).body(()).expect("request")
}

#[test]
fn a_page_of_another_site_does_not_use_up_the_rate_of_who_looks_at_it() {
    let metrics = Metrics::new();
    let guard = Guard::new(NonZeroU32::new(2).expect("not zero"), Arc::clone(&metrics));
    let caller = Caller::loopback(std::net::SocketAddr::from(([127, 0, 0, 1], 1)), Some(7));
    let refused = |request: &Request<()>| {
        let refused = guard.check(&caller, request).expect_err("a page of another site");
        axum::response::IntoResponse::into_response(refused).status()
    };
    let rebound = request(Method::GET, "/v1/status", "rebound.example:8054");
    let mut foreign = request(Method::GET, "/v1/status", "127.0.0.1:8054");
    let site = HeaderValue::from_static("cross-site");
    foreign.headers_mut().insert("sec-fetch-site", site);
    assert_eq!(refused(&rebound), StatusCode::FORBIDDEN);
    assert_eq!(refused(&foreign), StatusCode::FORBIDDEN);
    for _ in 0..20 {
        refused(&rebound);
        refused(&foreign);
    }
    let text = metrics.encode().expect("text");
    assert!(
        text.contains("zt_api_refused_total{cause=\"too_many_requests\"} ")
            && !text.contains("zt_api_refused_total{cause=\"too_many_requests\"} 0\n"),
        "they have a rate: {text}"
    );
    // And who looks at it has all of theirs.
    let own = request(Method::GET, "/v1/status", "127.0.0.1:8054");
    assert!(guard.check(&caller, &own).is_ok() && guard.check(&caller, &own).is_ok());
    assert!(guard.check(&caller, &own).is_err(), "the third within a second");
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
            (Method::POST, "/v1/replay"),
            (Method::PUT, "/v1/policies/x"),
            (Method::POST, "/v1/mode"),
            (Method::DELETE, "/v1/nodes/one"),
            (Method::DELETE, "/anything"),
        ]
        .map(|(method, path)| guard.check(&caller, &request(method, path, "x")).is_ok())
        .map(u8::from)
    };
    assert_eq!(served(None), [0; 12]);
    assert_eq!(served(Some(Role::Evaluate)), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(served(Some(Role::Follow)), [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(served(Some(Role::Read)), [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
    assert_eq!(served(Some(Role::Admin)), [1; 12]);
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
