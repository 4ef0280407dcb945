// SPDX-License-Identifier: Apache-2.0
//! The grammar of SPIFFE IDs, and their numbers.

use proptest::prelude::*;
use zt_common::identity;

use super::{Pattern, PatternError, SpiffeId, SpiffeIdError, number_of};

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("a literal of this test")
}

#[test]
fn parts_and_number() {
    let iam = id("spiffe://hanzo.ai/hanzo-k8s/hanzo/iam");
    assert_eq!(iam.trust_domain(), "hanzo.ai");
    assert_eq!(iam.path(), "hanzo-k8s/hanzo/iam");
    assert_eq!(iam.number(), number_of(iam.as_str()));
    assert_eq!(id("spiffe://hanzo.ai").path(), "");
    // printf %s abc | sha256sum
    assert_eq!(number_of("abc"), 0xba78_16bf_8f01_cfea);
}

#[test]
fn what_is_not_a_spiffe_id_says_why() {
    use SpiffeIdError as E;
    let long = format!("spiffe://hanzo.ai/{}", "a".repeat(2048));
    let long_domain = format!("spiffe://{}/a", "a".repeat(256));
    let cases = [
        ("", E::Scheme),
        ("hanzo.ai/iam", E::Scheme),
        ("SPIFFE://hanzo.ai/iam", E::Scheme),
        ("https://hanzo.ai/iam", E::Scheme),
        ("spiffe://", E::NoTrustDomain),
        ("spiffe:///iam", E::NoTrustDomain),
        (
            "spiffe://Hanzo.ai/iam",
            E::TrustDomainCharacter { character: 'H' },
        ),
        (
            "spiffe://hanzo.ai:443/iam",
            E::TrustDomainCharacter { character: ':' },
        ),
        (
            "spiffe://me@hanzo.ai/iam",
            E::TrustDomainCharacter { character: '@' },
        ),
        (
            "spiffe://hanzo.ai?x=1",
            E::TrustDomainCharacter { character: '?' },
        ),
        ("spiffe://hanzo.ai/", E::EmptySegment),
        ("spiffe://hanzo.ai/iam/", E::EmptySegment),
        ("spiffe://hanzo.ai//iam", E::EmptySegment),
        ("spiffe://hanzo.ai/./iam", E::DotSegment { segment: ".".into() }),
        ("spiffe://hanzo.ai/../iam", E::DotSegment { segment: "..".into() }),
        ("spiffe://hanzo.ai/iam?x=1", E::PathCharacter { character: '?' }),
        ("spiffe://hanzo.ai/iam#x", E::PathCharacter { character: '#' }),
        ("spiffe://hanzo.ai/i%61m", E::PathCharacter { character: '%' }),
        ("spiffe://hanzo.ai/i am", E::PathCharacter { character: ' ' }),
        ("spiffe://hanzo.ai/iäm", E::PathCharacter { character: 'ä' }),
        ("spiffe://hanzo.ai/iam\n", E::PathCharacter { character: '\n' }),
        (long.as_str(), E::TooLong { bytes: 2066 }),
        (long_domain.as_str(), E::TrustDomainTooLong { bytes: 256 }),
    ];
    for (text, error) in cases {
        assert_eq!(SpiffeId::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn the_longest_id_is_accepted() {
    let prefix = "spiffe://hanzo.ai/";
    let text = format!("{prefix}{}", "a".repeat(super::MAX_BYTES - prefix.len()));
    assert_eq!(id(&text).as_str(), text);
}

#[test]
fn serde_goes_through_the_parser() {
    let iam = id("spiffe://hanzo.ai/iam");
    let json = serde_json::to_string(&iam).expect("a string");
    assert_eq!(json, "\"spiffe://hanzo.ai/iam\"");
    assert_eq!(serde_json::from_str::<SpiffeId>(&json).expect("round trip"), iam);
    assert!(serde_json::from_str::<SpiffeId>("\"spiffe://hanzo.ai//iam\"").is_err());
}

#[test]
fn a_star_stands_for_one_whole_segment() {
    let pattern = Pattern::parse("spiffe://hanzo.ai/*/hanzo/*").expect("a pattern");
    assert!(pattern.matches(&id("spiffe://hanzo.ai/hanzo-k8s/hanzo/iam")));
    assert!(!pattern.matches(&id("spiffe://hanzo.ai/hanzo-k8s/hanzo")));
    assert!(!pattern.matches(&id("spiffe://hanzo.ai/hanzo-k8s/hanzo/iam/x")));
    assert!(!pattern.matches(&id("spiffe://hanzo.ai/hanzo-k8s/lux/iam")));
    assert!(!pattern.matches(&id("spiffe://lux.ai/hanzo-k8s/hanzo/iam")));
    assert!(
        Pattern::parse("*")
            .expect("any")
            .matches(&id("spiffe://lux.ai/x"))
    );
}

#[test]
fn what_is_no_pattern_says_why() {
    use PatternError as E;
    let cases = [
        (
            "spiffe://hanzo.ai/ia*",
            E::PartialWildcard {
                segment: "ia*".into(),
            },
        ),
        (
            "spiffe://hanzo.ai/**",
            E::PartialWildcard { segment: "**".into() },
        ),
        ("spiffe://*/iam", E::TrustDomainWildcard),
        (
            "spiffe://hanzo.ai",
            E::NoPath {
                text: "spiffe://hanzo.ai".into(),
            },
        ),
        ("spiffe://hanzo.ai/*/", E::NotAnId(SpiffeIdError::EmptySegment)),
        ("**", E::NotAnId(SpiffeIdError::Scheme)),
    ];
    for (text, error) in cases {
        let found = Pattern::parse(text);
        assert_eq!(found, Err(error), "{text:?}");
    }
}

prop_compose! {
    fn legal()(domain in "[a-z0-9._-]{1,20}", path in proptest::collection::vec("[a-zA-Z0-9._-]{1,8}", 0..5))
        -> String {
        let relative = |s: &String| s == "." || s == "..";
        let mut segments = vec![format!("spiffe://{domain}")];
        segments.extend(path.into_iter().filter(|s| !relative(s)));
        segments.join("/")
    }
}

proptest! {
    #[test]
    fn legal_ids_round_trip(text in legal()) {
        let parsed = id(&text);
        prop_assert_eq!(parsed.as_str(), &text);
        prop_assert!(identity::is_workload(parsed.number()));
        let path = parsed.path();
        let slash = if path.is_empty() { "" } else { "/" };
        prop_assert_eq!(format!("spiffe://{}{slash}{path}", parsed.trust_domain()), text);
    }

    #[test]
    fn nothing_else_is_accepted(text in legal(), at in 9usize..40, bad in "[A-Z/:@?#%* äéÿ\\\\\\x00]") {
        // One character that is illegal in a trust domain, put into it.
        let domain_end = text[9..].find('/').map_or(text.len(), |slash| slash + 9);
        let at = at.min(domain_end);
        let broken = format!("{}{bad}{}", &text[..at], &text[at..]);
        let accepted = SpiffeId::parse(&broken).is_ok();
        // A slash may cut the domain in two legal parts.
        prop_assert!(!accepted || (bad == "/" && at > 9), "{}", broken);
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in ".*") {
        let _ = SpiffeId::parse(&text);
        let _ = Pattern::parse(&text);
    }

    #[test]
    fn accepted_means_the_charset_holds(text in "spiffe://[a-zA-Z0-9./:_-]{0,24}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert!(!id.trust_domain().is_empty());
            prop_assert!(id.trust_domain().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)));
            let no_path = text.len() == 9 + id.trust_domain().len();
            prop_assert!(no_path || id.path().split('/').all(|s| !s.is_empty() && s != "." && s != ".."));
        }
    }
}
