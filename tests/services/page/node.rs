// SPDX-License-Identifier: Apache-2.0
//! The page of an agent that enforces: its traffic, where it stopped, and that it leaves whoever reads where they are.

use anyhow::{Result, ensure};
use serde_json::json;
use zt_tests::{Agent, Policy, Scene, TCP, eventually, spiffe};

use super::browser::{self, Browser, LATER};

/// A rollout at the first of two stages, which is taken back after more than two denials.
pub(crate) fn rollout() -> String {
    let limit = json!({ "perMinute": 2, "action": "rollback" });
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "EnforcementRollout",
        "metadata": { "name": "to-enforcing" },
        "spec": { "stage": "first", "stages": [
            { "name": "first", "identities": [spiffe("client")], "onDenials": limit },
            { "name": "second", "identities": ["*"], "canary": { "percent": 50, "by": "workload" } },
        ] },
    });
    format!("{document:#}\n")
}

/// What has the focus, by its key.
const FOCUSED: &str = "return document.activeElement.dataset.key ?? document.activeElement.tagName";

/// Waits until what is denied at a port is on the page.
fn shows_denial(browser: &Browser, port: u16) -> Result<()> {
    let text = "return document.querySelector('aside').textContent";
    let wanted = format!("{port}/TCP");
    browser.is(&format!("a denial at {port}"), text, |text| {
        text.as_str().is_some_and(|text| text.contains(&wanted))
    })
}

/// Waits until the graph has been asked for that often, and what came was looked at.
fn asks(browser: &Browser, times: u64) -> Result<()> {
    let script = "return performance.getEntriesByType('resource').filter((one) => one.name.includes('/v1/graph')).length";
    let before = browser.run(script)?.as_u64().unwrap_or_default();
    // When the next one is asked for, the last one's answer has been looked at.
    browser.is("further questions", script, |now| {
        now.as_u64() > Some(before + times)
    })
}

/// Waits until all of these texts are on the page.
pub(crate) fn text_has(browser: &Browser, what: &str, texts: &[&str]) -> Result<()> {
    browser.is(
        what,
        "return document.querySelector('main').textContent",
        |text| {
            text.as_str()
                .is_some_and(|text| texts.iter().all(|wanted| text.contains(wanted)))
        },
    )
}

fn stopped(agent: &Agent) -> Result<bool> {
    Ok(!agent.get("/v1/rollout")?["rollout"]["stopped"].is_null())
}

#[test]
fn whoever_reads_stays_where_they_are_while_the_node_goes_on() -> Result<()> {
    let (scene, server, mut client) = Scene::served("page-node", &[80])?;
    let agent = scene
        .agent(&Policy::new("core").allow("client", "server", TCP, "80"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout())?
        .start()?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    let browser = Browser::start(scene.sandbox(), &[])?;
    browser.open(&format!("http://{}/", agent.api()))?;
    browser.is(
        "both services",
        "return document.querySelectorAll('button.service').length",
        |count| *count == 2,
    )?;

    // A service keeps the focus when an edge is added to the graph,
    let key = format!("service {}", spiffe("client"));
    browser.run(&format!(
        "document.querySelector('[data-key=\"' + CSS.escape('{key}') + '\"]').focus()"
    ))?;
    assert_eq!(browser.run(FOCUSED)?, json!(key));
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    shows_denial(&browser, 81)?;
    assert_eq!(browser.run(FOCUSED)?, json!(key));
    // and a filter keeps what was typed, with its place in it.
    browser.press("/")?;
    browser.press("client")?;
    browser.press(browser::LEFT)?;
    assert_eq!(client.tcp(server.v4(82))?, "EPERM");
    shows_denial(&browser, 82)?;
    assert_eq!(
        browser
            .run("const at = document.activeElement; return [at.dataset.key, at.value, at.selectionStart]")?,
        json!(["filter", "client", 5])
    );
    browser.press(browser::ESCAPE)?;
    // What is marked stays, whatever comes.
    browser.run(
        "window.marked = document.querySelector('main .note'); getSelection().selectAllChildren(marked)",
    )?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    asks(&browser, 1)?;
    assert_eq!(browser.run("return marked.isConnected")?, json!(true));
    browser.run("getSelection().removeAllRanges()")?;
    browser.is("what came", "return marked.isConnected", |is| *is == false)?;

    // One denial too many in a minute, and the node goes back.
    for port in [81, 82, 83] {
        assert_eq!(client.tcp(server.v4(port))?, "EPERM");
    }
    eventually("the node to stop", LATER, || stopped(&agent))?;
    browser.press("5")?;
    text_has(
        &browser,
        "where it stopped",
        &[
            "Stopped at first: this node went back behind this stage",
            "3 different connections",
            "Refused most often",
            "81/TCP",
            "in force here is none",
            "of 2 workloads enforce",
        ],
    )?;
    let states = "return [...document.querySelectorAll('ol.stages li')].map((stage) => stage.className)";
    assert_eq!(browser.run(states)?, json!(["stopped", "next"]));
    assert_eq!(
        browser.run("return document.querySelectorAll('ol.stages progress').length")?,
        json!(2)
    );
    browser.shot("rollout-stopped")?;

    // Live decisions are those of the node.
    browser.press("2")?;
    text_has(&browser, "a stream", &["connected"])?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    text_has(&browser, "a decision", &["core/rule-1", "80/TCP", "ALLOW"])?;

    // An answer that takes longer than the page waits before it asks anew is waited for.
    browser.run(
        "const fetched = window.fetch;
         window.fetch = async (path, options) => {
           if (path.startsWith('/v1/graph')) {
             await new Promise((resolve) => setTimeout(resolve, 20000));
           }
           return fetched(path, options);
         };",
    )?;
    browser.press("1")?;
    text_has(&browser, "what is waited for", &["Asking the agent"])?;
    browser.is(
        "a late answer",
        "return document.querySelectorAll('button.service').length",
        |count| *count == 2,
    )?;
    let log = browser.log()?;
    ensure!(log.is_empty(), "the browser's log: {log:#?}");
    Ok(())
}
