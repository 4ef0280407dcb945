// SPDX-License-Identifier: Apache-2.0
//! A recommendation as it is wished for on the page, with the keyboard and with the mouse, and the policies in force beside it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use zt_tests::Sandbox;

use super::browser::{self, Browser};
use super::node::text_has;
use super::{engine, is_readable};

const BACKSPACE: &str = "\u{e003}";
/// The policy that is shown.
const POLICY: &str = "return document.querySelector('main pre')?.textContent ?? ''";
/// What is wrong.
const WRONG: &str = "return document.querySelector('main .problem')?.textContent ?? ''";
/// Whether what was refused is wished for, too.
const TICKED: &str = "return document.querySelector('[data-key=\"include denied\"]').checked";
/// What is written in the field, and what has the focus.
const FIELD: &str =
    "return [document.getElementById('pattern')?.value, document.activeElement.dataset.key ?? '']";
/// Rules that nothing used, with what of them.
const UNUSED: &str = "return [...document.querySelectorAll('section[aria-label=\"Rules in force that nothing used\"] tbody tr')]
    .map((row) => [...row.cells].map((cell) => cell.textContent))";
const ONE_NAMESPACE: &str = "spiffe://hanzo.ai/hanzo-k8s/ns-1/*";

/// Writes something in place of what is there.
fn write(browser: &Browser, pattern: &str) -> Result<()> {
    browser.run("const field = document.getElementById('pattern'); field.focus(); field.select()")?;
    browser.press(BACKSPACE)?;
    if pattern.is_empty() {
        return Ok(());
    }
    browser.press(pattern)
}

/// Does so, and sends it off.
fn wish(browser: &Browser, pattern: &str) -> Result<()> {
    write(browser, pattern)?;
    browser.press(browser::ENTER)
}

fn focus(browser: &Browser, key: &str) -> Result<()> {
    browser
        .run(&format!("document.querySelector('[data-key=\"{key}\"]').focus()"))
        .map(drop)
}

fn has(text: &Value, part: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(part))
}

/// The browser notes each answer that is none.
fn is_of_a_refusal(entry: &Value) -> bool {
    has(&entry["message"], "pattern=web-") && has(&entry["message"], "400")
}

#[test]
fn a_recommendation_is_as_wished_and_compared_with_what_is_in_force() -> Result<()> {
    let sandbox = Sandbox::new("page-recommend")?;
    let engine = engine(&sandbox)?;
    let before = engine.digest()?;
    let browser = Browser::start(&sandbox, &[])?;
    browser.open(&format!("{}/#recommend", engine.url()))?;
    let is_policy = |text: &Value| has(text, "kind: ServiceAccessPolicy");
    browser.is("a policy", POLICY, is_policy)?;
    ensure!(!has(&browser.run(POLICY)?, ONE_NAMESPACE), "nobody wished for it");

    wish(&browser, ONE_NAMESPACE)?;
    browser.is("a pattern in it", POLICY, |text| has(text, ONE_NAMESPACE))?;
    assert_eq!(browser.run(FIELD)?, json!([ONE_NAMESPACE, "pattern"]));
    // What is no pattern is told of, and can be mended where it stands.
    wish(&browser, "web-*")?;
    browser.is("what is wrong", WRONG, |text| has(text, "`web-*`"))?;
    assert_eq!(browser.run(FIELD)?, json!(["web-*", "pattern"]));
    assert_eq!(browser.run(POLICY)?, "");
    wish(&browser, "")?;
    browser.is("a policy again", POLICY, |text| {
        is_policy(text) && !has(text, ONE_NAMESPACE)
    })?;
    // What is clicked right after something was written is still there: nothing is asked before that is wanted.
    write(&browser, ONE_NAMESPACE)?;
    for ticked in [true, false] {
        browser.click("[data-key='include denied']")?;
        assert_eq!(browser.run(TICKED)?, ticked);
    }
    ensure!(!has(&browser.run(POLICY)?, ONE_NAMESPACE), "it was not asked for");
    browser.click("[data-key=recommend]")?;
    // What is wished for stays while other views are shown.
    browser.is("a pattern again", POLICY, |text| has(text, ONE_NAMESPACE))?;
    browser.run("document.getElementById('main').focus()")?;
    browser.press("5")?;
    text_has(&browser, "another view", &["There is no rollout"])?;
    browser.press("6")?;
    browser.is("the pattern still", POLICY, |text| has(text, ONE_NAMESPACE))?;

    focus(&browser, "include denied")?;
    browser.press(" ")?;
    assert_eq!(browser.run(TICKED)?, true);
    focus(&browser, "recommend")?;
    browser.press(browser::ENTER)?;
    text_has(
        &browser,
        "what was refused",
        &["and what was refused", "kind: ServiceAccessPolicy"],
    )?;
    assert_eq!(browser.run(TICKED)?, true);
    assert_eq!(browser.run(FIELD)?, json!([ONE_NAMESPACE, "recommend"]));

    focus(&browser, "compare")?;
    browser.press(browser::ENTER)?;
    text_has(
        &browser,
        "what is missing",
        &["recorded by this node", "Missing in the policies in force"],
    )?;
    assert_eq!(
        browser.run(UNUSED)?,
        json!([["core/rule-1", "all of it"], ["core/rule-2", "all of it"]])
    );
    for scheme in ["dark", "light"] {
        browser.prefers(scheme)?;
        is_readable(&browser, &format!("recommendation-compared-{scheme}"))?;
    }
    assert_eq!(engine.digest()?, before, "no policy was changed");
    let log = browser.log()?;
    ensure!(log.iter().all(is_of_a_refusal), "the browser's log: {log:#?}");
    Ok(())
}
