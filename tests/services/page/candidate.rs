// SPDX-License-Identifier: Apache-2.0
//! Policies that are not in force, judged on the page: typed, brought in files, taken from the recommendation.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::{Policy, Sandbox, TCP};

use super::browser::{self, Browser};
use super::node::text_has;
use super::{engine, is_readable};

/// What has the focus: its key.
const FOCUSED: &str = "return document.activeElement.dataset.key ?? document.activeElement.tagName";
/// What is written in the field.
const WRITTEN: &str = "return document.getElementById('candidate').value";
/// How many connections of each kind there are by the candidate.
const SUMS: &str =
    "return [...document.querySelectorAll('.candidate .cards li')].map((one) => one.textContent)";
/// What is wrong with it.
const WRONG: &str = "return document.querySelector('.candidate .problem')?.textContent ?? ''";

fn has(text: &Value, part: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(part))
}

/// Puts a text in the field, as pasting does.
fn paste(browser: &Browser, text: &str) -> Result<()> {
    let script = format!(
        "const field = document.getElementById('candidate'); field.value = {}; field.dispatchEvent(new Event('input', {{ bubbles: true }}))",
        json!(text)
    );
    browser.run(&script).map(drop)
}

/// Chooses files, each of a name and what an expression says.
fn choose(browser: &Browser, files: &[(&str, &str)]) -> Result<()> {
    let files: Vec<String> = files
        .iter()
        .map(|(name, text)| format!("new File([{text}], '{name}')"))
        .collect();
    let script = format!(
        "const chosen = new DataTransfer(); for (const file of [{}]) {{ chosen.items.add(file); }}
         const input = document.querySelector('[data-key=\"candidate files\"]'); input.files = chosen.files;
         input.dispatchEvent(new Event('change', {{ bubbles: true }}))",
        files.join(", ")
    );
    browser.run(&script).map(drop)
}

/// Has what is written judged, with the keyboard from the field.
fn replay(browser: &Browser) -> Result<()> {
    browser.run("document.getElementById('candidate').focus()")?;
    browser.press(browser::TAB)?;
    assert_eq!(browser.run(FOCUSED)?, "candidate files");
    browser.press(browser::TAB)?;
    assert_eq!(browser.run(FOCUSED)?, "candidate replay");
    browser.press(browser::ENTER)
}

/// Whether files can be chosen, and what is written can be judged.
const HELD: &str = "return ['candidate files', 'candidate replay'].map((key) => document.querySelector(`[data-key=\"${key}\"]`).disabled)";
/// How often the operator was asked whether what was typed may be lost.
const ASKED: &str = "return window.asked";

/// What the operator says when the page asks.
fn says(browser: &Browser, answer: bool) -> Result<()> {
    let script =
        format!("window.confirm = () => {{ window.asked = (window.asked ?? 0) + 1; return {answer}; }}");
    browser.run(&script).map(drop)
}

/// The browser notes each answer that refuses.
fn is_of_a_refusal(entry: &Value) -> bool {
    let message = entry["message"].as_str();
    message.is_some_and(|message| message.contains("/v1/replay") && message.contains("422"))
}

#[test]
#[expect(clippy::too_many_lines, reason = "one way through the page")]
fn a_candidate_is_judged_on_the_page_and_changes_nothing() -> Result<()> {
    let sandbox = Sandbox::new("page-candidate")?;
    let engine = engine(&sandbox)?;
    let before = engine.digest()?;
    let browser = Browser::start(&sandbox, &[])?;
    browser.open(&format!("{}/#enforcing", engine.url()))?;
    text_has(&browser, "what is in force", &["which is in force now"])?;

    // Typed: digits and question marks are no commands there, and what is wrong is said with its line.
    browser.run("document.querySelector('[data-key=\"candidate summary\"]').focus()")?;
    browser.press(browser::ENTER)?;
    browser.is(
        "the field",
        "return document.querySelector('.candidate').open",
        |open| *open == true,
    )?;
    browser.press(browser::TAB)?;
    assert_eq!(browser.run(FOCUSED)?, "candidate");
    browser.press(&format!(
        "apiVersion: zt.hanzo.ai/v1{}kind: Nonsense?",
        browser::ENTER
    ))?;
    assert_eq!(
        browser.run(WRITTEN)?,
        "apiVersion: zt.hanzo.ai/v1\nkind: Nonsense?"
    );
    assert_eq!(
        browser.run("return [location.hash, document.getElementById('help').open]")?,
        json!(["#enforcing", false])
    );
    replay(&browser)?;
    browser.is("what is wrong", WRONG, |text| {
        has(text, "line 2: kind ") && has(text, "Nonsense")
    })?;
    for scheme in ["dark", "light"] {
        browser.prefers(scheme)?;
        is_readable(&browser, &format!("{scheme}-candidate-wrong"))?;
    }

    // Pasted, in two documents: who called the world may not any more, and all between services is allowed.
    let services = "spiffe://hanzo.ai/hanzo-k8s/*/*";
    let one = Policy::new("services")
        .allow(services, services, TCP, "5432")
        .text();
    let two = Policy::new("other").allow("client", "server", TCP, "81").text();
    paste(&browser, &format!("{one}---\n{two}"))?;
    replay(&browser)?;
    text_has(
        &browser,
        "what it changes",
        &[
            "by the candidate in place of revision 1. Nothing was changed.",
            "newly allowed",
        ],
    )?;
    let sums = browser.run(SUMS)?;
    let sums = sums.as_array().context("sums")?;
    ensure!(
        sums.contains(&json!("1newly denied (1 connections)"))
            && !sums.iter().any(|sum| has(sum, "0newly allowed (0 ")),
        "{sums:?}"
    );
    let rows = "return [...document.querySelectorAll('.candidate tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))
        .filter((row) => row[0] === 'newly denied')";
    let rows = browser.run(rows)?;
    let row: Vec<&str> = rows[0]
        .as_array()
        .context("a row")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    ensure!(
        rows.as_array().map(Vec::len) == Some(1)
            && row[2].starts_with("world")
            && row[3] == "5432/TCP"
            && row[4] == "1"
            && row[5].len() == "2026-03-02 09:10:45".len()
            && row[5] == row[6],
        "{rows}"
    );
    for scheme in ["dark", "light"] {
        browser.prefers(scheme)?;
        is_readable(&browser, &format!("{scheme}-candidate"))?;
    }

    // In files, if what was typed may be lost; and what is larger than the agent takes is not read.
    let files = [("one.yaml", "'a: 1\\n'"), ("two.json", "'{\"b\": 2}'")];
    let typed = browser.run(WRITTEN)?;
    says(&browser, false)?;
    choose(&browser, &files)?;
    text_has(
        &browser,
        "that they were not taken",
        &["Nothing was taken from one.yaml, two.json: what is written stays."],
    )?;
    assert_eq!((browser.run(WRITTEN)?, browser.run(ASKED)?), (typed, json!(1)));
    says(&browser, true)?;
    choose(&browser, &files)?;
    text_has(&browser, "that they were read", &["Read one.yaml, two.json."])?;
    let read = "a: 1\n\n---\n{\"b\": 2}";
    assert_eq!(
        (browser.run(WRITTEN)?, browser.run(ASKED)?),
        (json!(read), json!(2))
    );
    choose(&browser, &[("large.yaml", "'x'.repeat((1 << 20) + 1)")])?;
    browser.is("that it is too large", WRONG, |text| {
        has(text, "more than 1,048,576 bytes")
    })?;
    assert_eq!(browser.run(WRITTEN)?, read);
    // What is written stays while other views are shown,
    browser.run("document.getElementById('main').focus()")?;
    browser.press("6")?;
    text_has(
        &browser,
        "the recommendation",
        &["kind: ServiceAccessPolicy", "Replay as a candidate"],
    )?;
    browser.press("4")?;
    browser.is(
        "what was written",
        "return document.getElementById('candidate')?.value",
        |text| *text == read,
    )?;
    // and makes room for a recommendation, by which nothing would be denied that went through; if it was typed, when that was asked.
    paste(&browser, "typed: 1")?;
    browser.press("6")?;
    text_has(
        &browser,
        "the recommendation again",
        &["kind: ServiceAccessPolicy"],
    )?;
    let recommended = browser.run("return document.querySelector('main pre').textContent")?;
    browser.run("document.querySelector('[data-key=consider]').focus()")?;
    says(&browser, false)?;
    browser.press(browser::ENTER)?;
    browser.is("that it was asked", ASKED, |asked| *asked == 3)?;
    assert_eq!(browser.run("return location.hash")?, "#recommend");
    says(&browser, true)?;
    browser.press(browser::ENTER)?;
    browser.is("the field", FOCUSED, |key| *key == "candidate")?;
    assert_eq!(browser.run(WRITTEN)?, recommended);
    // Nothing can be brought while an answer is awaited, and the keyboard is where it was afterwards.
    browser.run(
        "const real = window.fetch;
         window.fetch = (path, given) => given?.method === 'POST'
           ? new Promise((done) => { window.answer = () => done(real(path, given)); }) : real(path, given)",
    )?;
    replay(&browser)?;
    browser.is("that it is awaited", HELD, |held| *held == json!([true, true]))?;
    browser.run("window.answer()")?;
    browser.is("what it changes", SUMS, |sums| {
        let is_there = |wanted: &str| sums.as_array().is_some_and(|sums| sums.contains(&json!(wanted)));
        is_there("0would be denied (0 connections)") && is_there("0newly denied (0 connections)")
    })?;
    assert_eq!(browser.run(HELD)?, json!([false, false]));
    assert_eq!(browser.run(FOCUSED)?, "candidate replay");
    browser.shot("candidate-recommended")?;

    assert_eq!(engine.digest()?, before, "no policy was changed");
    let log = browser.log()?;
    ensure!(log.iter().all(is_of_a_refusal), "the browser's log: {log:#?}");
    Ok(())
}
