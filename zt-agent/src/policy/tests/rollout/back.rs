// SPDX-License-Identifier: Apache-2.0
//! The way back is open, whatever is wrong with other documents.

use super::{ROLLOUT, document, policy, read, rollout_of, set};
use crate::policy::{Document, Settings, reparse};

#[test]
fn the_stage_goes_back_whatever_is_wrong_with_others() {
    let settings = Settings::default();
    let in_force = set(&[document("r.yaml", ROLLOUT), policy("p", "    []")]);
    let broken = document("p.yaml", "a: [");
    let second = document("a.yaml", &ROLLOUT.replace("name: hanzo", "name: another"));
    let at = |stage: &str| document("r.yaml", &ROLLOUT.replace("stage: few", stage));
    for other in [&broken, &second] {
        let gone = |rollout: Document| in_force.gone_back(&[other.clone(), rollout], &settings);
        let back = gone(at("stage: lax")).expect("it goes back");
        assert_eq!(rollout_of(&back).reached(), 1);
        assert!(
            back.get("p").is_some() && back.get("another").is_none(),
            "all else is as it was"
        );
        assert_ne!(back.digest(), in_force.digest());
        let none = gone(document("r.yaml", &ROLLOUT.replace("  stage: few\n", ""))).expect("it goes back");
        assert_eq!(rollout_of(&none).reached(), 0);
        assert!(gone(at("stage: most")).is_none(), "and not on");
        assert!(gone(at("stage: few")).is_none() && gone(at("stage: none")).is_none());
        // What the others are mended to is read as it is written.
        let mended = reparse(&[document("r.yaml", ROLLOUT)], &settings, &back).expect("valid");
        assert_eq!(rollout_of(&mended).reached(), 2);
    }
    let elsewhere = document(
        "r.yaml",
        &ROLLOUT
            .replace("name: hanzo", "name: x")
            .replace("stage: few", "stage: lax"),
    );
    assert!(in_force.gone_back(&[broken, elsewhere], &settings).is_none());
}

#[test]
fn the_rollout_in_force_is_not_the_one_too_many() {
    let settings = Settings::default();
    let in_force = read(ROLLOUT);
    let second = document("a.yaml", &ROLLOUT.replace("name: hanzo", "name: another"));
    let found = reparse(&[second, document("r.yaml", ROLLOUT)], &settings, &in_force);
    let found = found.expect_err("two");
    assert_eq!((found.len(), found[0].file.as_str()), (1, "a.yaml"), "{found:#?}");
    assert!(
        found[0]
            .message
            .starts_with("`another` conflicts with the EnforcementRollout `hanzo`")
    );
}
