// SPDX-License-Identifier: Apache-2.0
//! The page in a real browser: what it shows and of whom, with the keyboard alone, in dark and light, and what other pages in
//! that browser can do to the agent.

#[path = "page/browser.rs"]
mod browser;
#[path = "page/candidate.rs"]
mod candidate;
#[path = "page/followers.rs"]
mod followers;
#[path = "page/keyboard.rs"]
mod keyboard;
#[path = "page/node.rs"]
mod node;
#[path = "page/recommendation.rs"]
mod recommendation;
#[path = "page/trail.rs"]
mod trail;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::{Engine, Policy, Sandbox, TCP, eventually, ports, spiffe};

use self::browser::{Browser, LATER};
use self::node::text_has;

/// Services that a page must be readable with.
const SERVICES: u32 = 300;

/// An engine with a policy, and a trail of what many services did.
fn engine(sandbox: &Sandbox) -> Result<Engine> {
    let policy = Policy::new("core")
        .allow("client", "server", TCP, "80")
        .allow("client", "nobody", TCP, "81");
    let mut engine = Engine::with_policy(sandbox, "engine", &policy)?;
    trail::fill(&sandbox.directory().join("engine/audit.db"), SERVICES)?;
    engine.start()?;
    Ok(engine)
}

/// All that is written on the page has enough contrast.
fn is_readable(browser: &Browser, what: &str) -> Result<()> {
    let poor = browser.run(include_str!("page/contrast.js"))?;
    ensure!(poor == json!([]), "{what}: hardly to be read: {poor}");
    browser.shot(what)
}

/// The browser notes each answer that is none, some time after it came.
fn is_of_nobody(entry: &Value) -> bool {
    let message = entry["message"].as_str();
    message.is_some_and(|message| message.contains("namespace=nowhere") && message.contains("404"))
}

/// Of a namespace that nobody is in nothing is recorded: the views say that, and have no policy that denies all for whoever copies.
fn nothing_is_said_of_nobody(browser: &Browser) -> Result<()> {
    let choose = |name: &str| {
        browser.run(&format!(
            "const input = document.getElementById('namespace'); input.value = '{name}'; input.dispatchEvent(new Event('change'))"
        ))
    };
    choose("nowhere")?;
    for view in ["6", "4"] {
        browser.press(view)?;
        text_has(
            browser,
            "that nothing is recorded",
            &["no connections of namespace nowhere"],
        )?;
        let others =
            browser.run("return document.querySelectorAll('main button, main pre, main .problem').length")?;
        assert_eq!(others, json!(0), "{view}");
    }
    choose("")?;
    let log = browser.log()?;
    ensure!(log.iter().all(is_of_nobody), "the browser's log: {log:#?}");
    Ok(())
}

#[test]
#[expect(clippy::too_many_lines, reason = "one way through the page")]
fn the_page_shows_what_the_agent_knows() -> Result<()> {
    let sandbox = Sandbox::new("page")?;
    let engine = engine(&sandbox)?;
    let browser = Browser::start(&sandbox, &[])?;
    browser.open(&engine.url())?;

    // Three hundred services, those with odd names as what they are.
    let services = "return document.querySelectorAll('button.service').length";
    browser.is("services", services, |count| {
        count.as_u64() >= Some(u64::from(SERVICES))
    })?;
    browser.shot("graph")?;
    let texts = browser.run("return document.querySelector('main').textContent")?;
    let texts = texts.as_str().context("a text")?;
    assert!(
        texts.contains("<img src=x onerror=pwned()>"),
        "it is shown, as text"
    );
    assert!(!texts.contains('\u{202e}') && texts.contains("turned\u{fffd}around"));
    // Nothing covers another name.
    let overlap = browser.run(include_str!("page/overlap.js"))?;
    assert_eq!(
        overlap,
        json!([]),
        "names that cover each other or are cut to nothing"
    );

    // With the keyboard alone: to a service, and to whom it calls.
    browser.press("/")?;
    browser.press("svc-7 ns-0")?;
    browser.press(browser::ESCAPE)?;
    browser.press("d")?;
    browser.is(
        "only services with denials",
        "return document.querySelectorAll('li:not([hidden]) > button.service').length",
        |count| count.as_u64() < Some(150) && count.as_u64() > Some(0),
    )?;
    browser.press("d")?;
    browser.press(browser::DOWN)?;
    browser.press(browser::ENTER)?;
    browser.is(
        "a service that is chosen",
        "return document.querySelectorAll('button.service[aria-pressed=true]').length",
        |count| *count == 1,
    )?;
    browser.is(
        "lines of it",
        "return document.querySelectorAll('path.edge.chosen').length",
        |count| count.as_u64() > Some(0),
    )?;
    browser.shot("graph-chosen")?;

    // Live decisions: one that comes while one looks, with its rule.
    browser.press("2")?;
    browser.is(
        "a stream",
        "return document.querySelector('main').textContent.includes('connected')",
        |is| *is == true,
    )?;
    engine.evaluate(80)?;
    engine.evaluate(81)?;
    let rows = "return [...document.querySelectorAll('tbody tr')].map((row) => row.textContent).join('|')";
    browser.is("decisions", rows, |text| {
        text.as_str()
            .is_some_and(|text| text.contains("core/rule-1") && text.contains("DENY"))
    })?;
    browser.press("/")?;
    browser.press("rule-1")?;
    browser.is(
        "one that fits",
        "return document.querySelectorAll('tbody tr:not([hidden])').length",
        |count| *count == 1,
    )?;
    browser.run("document.querySelector('main').focus()")?;
    browser.press(browser::DOWN)?;
    browser.press(browser::ENTER)?;
    browser.is(
        "its rule",
        "return document.querySelector('aside pre')?.textContent ?? ''",
        |text| text.as_str().is_some_and(|text| text.contains(&spiffe("server"))),
    )?;
    browser.shot("live")?;

    browser.press("3")?;
    text_has(
        &browser,
        "how many rules are used",
        &["core", "1 of 2 rules used", "never in this time"],
    )?;
    let allowed = trail::allowed(SERVICES)?.to_string();
    let hits = "return [...document.querySelectorAll('details tbody tr')].map((row) => [...row.cells].slice(3, 6).map((cell) => cell.textContent))";
    assert_eq!(
        browser.run(hits)?,
        json!([[allowed, "0", "0"], ["never in this time"]])
    );
    browser.shot("policies")?;
    // With a rule above them they have other numbers, and nothing of what was counted is theirs, nor the new one's.
    let changed = Policy::new("core")
        .allow("other", "server", TCP, "80")
        .allow("client", "server", TCP, "80")
        .allow("client", "nobody", TCP, "81");
    assert_eq!(engine.put("core", &changed.text())?.status, 200);
    browser.press("r")?;
    text_has(
        &browser,
        "since when",
        &["0 of 3 rules used since ", "Counted since "],
    )?;
    let texts = browser.run(hits)?;
    let texts = texts.as_array().context("rows")?;
    assert!(
        texts.len() == 3
            && texts.iter().all(|row| row[0]
                .as_str()
                .is_some_and(|text| text.starts_with("never since "))),
        "{texts:?}"
    );
    browser.shot("policies-changed")?;
    browser.press("4")?;
    browser.is(
        "what enforcing would deny",
        "return document.querySelectorAll('tbody tr').length",
        |count| count.as_u64() > Some(0),
    )?;
    text_has(&browser, "whose records they are", &["recorded by this node"])?;
    browser.shot("enforcing")?;
    browser.press("5")?;
    browser.is(
        "that there is no rollout",
        "return document.querySelector('main').textContent",
        |text| {
            text.as_str()
                .is_some_and(|text| text.contains("There is no rollout"))
        },
    )?;
    browser.shot("rollout")?;
    // One that comes while one looks. An engine does not see the workloads of nodes, and says so.
    assert_eq!(engine.put("to-enforcing", &node::rollout())?.status, 200);
    browser.is(
        "stages",
        "return [...document.querySelectorAll('ol.stages li')].map((stage) => stage.className)",
        |states| *states == json!(["in_force", "next"]),
    )?;
    let texts = browser.run("return document.querySelector('main').textContent")?;
    let texts = texts.as_str().context("a text")?;
    for wanted in [
        "A policy engine does not see the workloads of nodes",
        "enforces all of those",
        "50 % by workload",
    ] {
        assert!(texts.contains(wanted), "no `{wanted}` in {texts}");
    }
    for unwanted in ["null", "undefined", "of 0", "TypeError"] {
        assert!(!texts.contains(unwanted), "`{unwanted}` in {texts}");
    }
    browser.shot("rollout-engine")?;
    browser.press("6")?;
    browser.is(
        "a policy",
        "return document.querySelector('pre')?.textContent ?? ''",
        |text| {
            text.as_str()
                .is_some_and(|text| text.contains("kind: ServiceAccessPolicy"))
        },
    )?;
    browser.shot("recommendation")?;
    nothing_is_said_of_nobody(&browser)?;

    // In dark and in light, what is written can be read.
    for scheme in ["dark", "light"] {
        browser.prefers(scheme)?;
        for view in ["1", "2", "3", "4", "5", "6"] {
            browser.press(view)?;
            browser.is("the view", keyboard::LOADED, |is| *is == true)?;
            if view == "2" {
                keyboard::look_at_decisions(&browser, &engine)?;
            }
            is_readable(&browser, &format!("{scheme}-{view}"))?;
        }
        browser.press("?")?;
        browser.is("the help", keyboard::HELPS, |open| *open == true)?;
        is_readable(&browser, &format!("{scheme}-help"))?;
        browser.press(browser::ESCAPE)?;
        browser.is("no help", keyboard::HELPS, |open| *open == false)?;
    }
    // Nothing ran that a workload named, nothing was refused by the page's own policy, nothing went wrong.
    assert_eq!(browser.run("return window.pwned ?? null")?, Value::Null);
    assert_eq!(
        browser.run("return document.querySelectorAll('main img, main script, main b').length")?,
        json!(0)
    );
    let log = browser.log()?;
    ensure!(log.iter().all(is_of_nobody), "the browser's log: {log:#?}");
    Ok(())
}

/// Serves one page to everybody, at a loopback address of its own.
fn serve(page: String) -> Result<SocketAddr> {
    let listener = TcpListener::bind(ports::free()?)?;
    let address = listener.local_addr()?;
    // It ends with the test's process.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{page}",
                page.len()
            );
        }
    });
    Ok(address)
}

#[test]
fn other_pages_in_the_browser_can_do_nothing() -> Result<()> {
    let sandbox = Sandbox::new("page-attack")?;
    let engine = engine(&sandbox)?;
    let browser = Browser::start(&sandbox, &["--host-resolver-rules=MAP rebound.example 127.0.0.1"])?;
    let refused = || -> Result<u64> {
        Ok(engine
            .metrics()?
            .sum("zt_api_refused_total", &[("cause", "origin_refused")]))
    };
    let before = engine.digest()?;
    let attack = include_str!("page/attack.html").replace("@API@", &engine.url());
    let attacker = serve(attack)?;
    browser.open(&format!("http://{attacker}/"))?;
    browser.is("the attack to be over", "return document.title", |title| {
        *title == "done"
    })?;
    let learned = browser.run("return window.learned")?;
    assert_eq!(learned, json!([]), "what the other page was told");
    eventually("the refusals to be counted", LATER, || Ok(refused()? >= 6))?;
    assert_eq!(engine.digest()?, before, "no policy was changed");
    let records = engine.get("/v1/audit?source=world")?;
    assert_eq!(records["records"], json!([]), "nothing was evaluated");

    // The same page under a name that leads to this machine.
    let port = engine.api().port();
    browser.open(&format!("http://rebound.example:{port}/"))?;
    let text = browser.run("return document.body.textContent")?;
    assert!(
        text.as_str().is_some_and(|text| text.contains("host_refused")),
        "{text}"
    );
    // Nor does that name lead to health and metrics.
    let by_name = || -> Result<u64> {
        Ok(engine
            .metrics()?
            .sum("zt_api_refused_total", &[("cause", "host_refused")]))
    };
    let before = by_name()?;
    browser.open(&format!(
        "http://rebound.example:{}/metrics",
        engine.health().port()
    ))?;
    let text = browser.run("return document.body.textContent")?;
    assert!(
        text.as_str().is_some_and(|text| text.contains("host_refused")),
        "{text}"
    );
    assert!(by_name()? > before);
    // And a link from there leads to the page.
    browser.open(&format!("http://{attacker}/#idle"))?;
    browser.run(&format!("location.href = '{}/'", engine.url()))?;
    browser.is("the page", "return document.title", |title| {
        title.as_str().is_some_and(|title| title.ends_with("zt"))
    })
}
