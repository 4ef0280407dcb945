// SPDX-License-Identifier: Apache-2.0
//! The page with the keyboard alone: the way that Tab takes through it, and each key that its help lists.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::{Engine, Sandbox};

use super::browser::{self, Browser};
use super::{SERVICES, engine};

/// Whether the help is open.
pub(crate) const HELPS: &str = "return document.getElementById('help').open";
/// Whether the answer that a view has asked for is there.
pub(crate) const LOADED: &str = "const main = document.querySelector('main');
    return main.querySelector('.note') !== null && !main.textContent.startsWith('Asking')";
/// What has the focus: its id, its key, or where it leads.
const FOCUSED: &str = "const at = document.activeElement; return at.id || at.dataset.key || at.getAttribute('href') || at.tagName";
/// The services that are to be seen, by their keys.
const SEEN: &str = "return [...document.querySelectorAll('li:not([hidden]) > button.service')].map((one) => one.dataset.key)";
/// How many services are chosen.
const CHOSEN: &str = "return document.querySelectorAll('button.service[aria-pressed=true]').length";
/// Where on the page the service is that has the focus.
const PLACE: &str = "const at = document.activeElement; const box = at.getBoundingClientRect();
    return at.matches('button.service') ? [box.left + scrollX, box.top + scrollY] : null";
/// Which row has the focus.
const ROW: &str = "return [...document.querySelectorAll('tbody tr')].indexOf(document.activeElement)";
const ROWS: &str = "return document.querySelectorAll('tbody tr').length";
/// What live decisions say of themselves.
const COUNT: &str = "return document.getElementById('live-count').textContent";

/// Whether a text, if it is one, has another in it.
fn has(text: &Value, part: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(part))
}

/// Waits for the stream of live decisions, has some made, and opens one with its rule.
pub(crate) fn look_at_decisions(browser: &Browser, engine: &Engine) -> Result<()> {
    let link = "return document.querySelector('main').textContent";
    browser.is("a stream", link, |text| has(text, "connected"))?;
    // What was typed there earlier.
    browser.press("/")?;
    browser.press(browser::ESCAPE)?;
    let before = browser.run(ROWS)?.as_u64().context("a count")?;
    for port in [81, 80] {
        engine.evaluate(port)?;
    }
    browser.is("decisions", ROWS, |rows| rows.as_u64() == Some(before + 2))?;
    browser.press(browser::DOWN)?;
    browser.press(browser::ENTER)?;
    browser.is(
        "a decision",
        "return document.querySelector('aside pre') !== null",
        |is| *is == true,
    )
}

/// A page with all services on it.
fn opened(sandbox: &Sandbox) -> Result<(Engine, Browser)> {
    let engine = engine(sandbox)?;
    let browser = Browser::start(sandbox, &[])?;
    browser.open(&engine.url())?;
    browser.is("services", SEEN, |keys| {
        keys.as_array()
            .is_some_and(|keys| keys.len() >= SERVICES as usize)
    })?;
    Ok((engine, browser))
}

fn complains_of_nothing(browser: &Browser) -> Result<()> {
    let log = browser.log()?;
    ensure!(log.is_empty(), "the browser's log: {log:#?}");
    Ok(())
}

/// Presses a key in the graph, and says where the service is that has the focus then.
fn step(browser: &Browser, key: &str) -> Result<[f64; 2]> {
    browser.press(key)?;
    let place = browser.run(PLACE)?;
    let at = |index: usize| place[index].as_f64().context("a service that has the focus");
    Ok([at(0)?, at(1)?])
}

#[test]
fn tab_passes_what_there_is_in_order_and_arrows_lead_through_the_graph() -> Result<()> {
    let sandbox = Sandbox::new("page-tab")?;
    let (_engine, browser) = opened(&sandbox)?;
    for wanted in [
        "skip",
        "since",
        "namespace",
        "again",
        "keys",
        "#graph",
        "#live",
        "#policies",
        "#enforcing",
        "#rollout",
        "#recommend",
        "filter",
        "only",
    ] {
        browser.press(browser::TAB)?;
        assert_eq!(browser.run(FOCUSED)?, wanted);
    }
    // However many services there are, Tab stops at one of them.
    browser.press(browser::TAB)?;
    let focused = browser.run(FOCUSED)?;
    ensure!(has(&focused, "service spiffe://"), "{focused}");
    browser.press(browser::TAB)?;
    let aside = "return document.activeElement.closest('aside') !== null";
    assert_eq!(browser.run(aside)?, true);

    // The first link leads past all of that.
    browser.run("document.getElementById('skip').focus()")?;
    browser.press(browser::ENTER)?;
    assert_eq!(browser.run(FOCUSED)?, "main");
    let first = step(&browser, browser::RIGHT)?;
    let right = step(&browser, browser::RIGHT)?;
    ensure!(right[0] > first[0], "{first:?} {right:?}");
    let left = step(&browser, browser::LEFT)?;
    ensure!(left[0] < right[0], "{right:?} {left:?}");
    let down = step(&browser, browser::DOWN)?;
    ensure!(down[1] > left[1], "{left:?} {down:?}");
    let up = step(&browser, browser::UP)?;
    ensure!(up[1] < down[1], "{down:?} {up:?}");

    browser.press(browser::ENTER)?;
    browser.is("a service that is chosen", CHOSEN, |count| *count == 1)?;
    browser.press(browser::ESCAPE)?;
    browser.is("none", CHOSEN, |count| *count == 0)?;
    complains_of_nothing(&browser)
}

#[test]
fn a_filter_narrows_the_graph_and_what_is_typed_is_no_command() -> Result<()> {
    let sandbox = Sandbox::new("page-filter")?;
    let (_engine, browser) = opened(&sandbox)?;
    let all = browser.run(SEEN)?;
    browser.press("/")?;
    assert_eq!(browser.run(FOCUSED)?, "filter");
    browser.press("ns-3 -svc-1")?;
    let seen = browser.run(SEEN)?;
    let seen: Vec<&str> = seen
        .as_array()
        .context("keys")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    ensure!(
        !seen.is_empty()
            && seen
                .iter()
                .all(|key| key.contains("/ns-3/") && !key.contains("svc-1")),
        "{seen:?}"
    );
    browser.press(browser::ESCAPE)?;
    assert_eq!(browser.run(SEEN)?, all);
    assert_eq!(browser.run(FOCUSED)?, "main");

    browser.run("document.getElementById('namespace').focus()")?;
    browser.press("5pr?")?;
    let typed = "return [document.activeElement.value, location.hash, document.getElementById('help').open]";
    assert_eq!(browser.run(typed)?, json!(["5pr?", "", false]));
    complains_of_nothing(&browser)
}

#[test]
fn each_key_does_what_the_help_says() -> Result<()> {
    let sandbox = Sandbox::new("page-keys")?;
    let (engine, browser) = opened(&sandbox)?;
    browser.run("document.getElementById('main').focus()")?;

    // Open, it takes all keys; closed, the focus is where it was.
    browser.press("?")?;
    browser.is("the help", HELPS, |open| *open == true)?;
    browser.press("2")?;
    assert_eq!(browser.run("return location.hash")?, "");
    browser.press(browser::ESCAPE)?;
    browser.is("no help", HELPS, |open| *open == false)?;
    assert_eq!(browser.run(FOCUSED)?, "main");
    browser.run("document.getElementById('keys').focus()")?;
    browser.press(browser::ENTER)?;
    browser.is("the help again", HELPS, |open| *open == true)?;
    browser.press(browser::ENTER)?;
    browser.is("no help again", HELPS, |open| *open == false)?;
    assert_eq!(browser.run(FOCUSED)?, "keys");

    // Asked anew, all that was there goes.
    browser.run("window.marked = document.querySelector('main .note')")?;
    browser.press("r")?;
    browser.is("another answer", "return marked.isConnected", |is| *is == false)?;
    browser.is("services", SEEN, |keys| {
        keys.as_array().is_some_and(|keys| !keys.is_empty())
    })?;

    let current = "return document.querySelector('nav a[aria-current=page]').getAttribute('href')";
    for (key, view) in ["graph", "live", "policies", "enforcing", "rollout", "recommend"]
        .into_iter()
        .enumerate()
    {
        browser.press(&(key + 1).to_string())?;
        browser.is("the view", current, |href| *href == format!("#{view}"))?;
        browser.is("what it shows", LOADED, |is| *is == true)?;
    }

    // Held, decisions are counted and wait for nobody.
    browser.press("2")?;
    let link = "return document.querySelector('main').textContent";
    browser.is("a stream", link, |text| has(text, "connected"))?;
    browser.press("p")?;
    browser.is("that it is held", COUNT, |text| has(text, "held, 0 came since"))?;
    engine.evaluate(81)?;
    browser.is("that one came", COUNT, |text| has(text, "held, 1 came since"))?;
    assert_eq!(browser.run(ROWS)?, 0);
    browser.press("p")?;
    browser.is("that it goes on", COUNT, |text| !has(text, "held"))?;
    for (port, rows) in [(81, 1), (80, 2)] {
        engine.evaluate(port)?;
        browser.is("a decision", ROWS, |count| *count == rows)?;
    }
    for (key, row) in [
        (browser::DOWN, 0),
        (browser::DOWN, 1),
        (browser::DOWN, 1),
        (browser::UP, 0),
    ] {
        browser.press(key)?;
        assert_eq!(browser.run(ROW)?, row);
    }
    browser.press(browser::ENTER)?;
    browser.is(
        "its rule",
        "return document.querySelector('aside pre')?.textContent ?? ''",
        |text| has(text, "spiffe"),
    )?;
    // Only what is denied: the other row goes.
    browser.press("d")?;
    let hidden = "return [...document.querySelectorAll('tbody tr')].map((row) => row.hidden)";
    browser.is("the denial alone", hidden, |rows| *rows == json!([true, false]))?;
    complains_of_nothing(&browser)
}
