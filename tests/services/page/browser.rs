// SPDX-License-Identifier: Apache-2.0
//! A headless Chromium, steered by `WebDriver`: JSON over plain HTTP.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::{Sandbox, ports, wait_for};

/// Longer than anything takes on a busy machine.
pub(crate) const LATER: Duration = Duration::from_secs(90);

/// Keys, as `WebDriver` writes them.
pub(crate) const ESCAPE: &str = "\u{e00c}";
pub(crate) const ENTER: &str = "\u{e007}";
pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const LEFT: &str = "\u{e012}";
pub(crate) const UP: &str = "\u{e013}";
pub(crate) const RIGHT: &str = "\u{e014}";
pub(crate) const DOWN: &str = "\u{e015}";

/// A browser with one window; it ends with the test.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
}

impl Browser {
    pub(crate) fn start(sandbox: &Sandbox, arguments: &[&str]) -> Result<Self> {
        let address = ports::free()?;
        let log = File::create(sandbox.directory().join("chromedriver.log"))?;
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .env("HOME", sandbox.directory())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("chromedriver is not installed: run `cargo xtask setup`")?;
        // So that it is swept up when this process is killed.
        sandbox.outside().child("browser")?.add(driver.id())?;
        let mut browser = Self {
            driver,
            address,
            session: String::new(),
        };
        wait_for("chromedriver", LATER, || {
            // Nobody listens in the beginning.
            Ok(request(address, "GET", "/status", "").ok().map(drop))
        })?;
        let profile = sandbox.directory().join("profile");
        // Chromium's own sandbox does not run as root, as these tests do.
        let own = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--no-proxy-server".to_owned(),
            "--disable-background-networking".to_owned(),
            "--window-size=1440,1000".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        let all: Vec<&str> = own
            .iter()
            .map(String::as_str)
            .chain(arguments.iter().copied())
            .collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": all},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.post("/session", &wanted)?;
        let id = session["sessionId"].as_str().context("a session")?;
        browser.session = format!("/session/{id}");
        Ok(browser)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        request(self.address, "POST", path, &body.to_string())
    }

    fn command(&self, path: &str, body: &Value) -> Result<Value> {
        self.post(&format!("{}{path}", self.session), body)
    }

    pub(crate) fn open(&self, url: &str) -> Result<()> {
        self.command("/url", &json!({ "url": url })).map(drop)
    }

    /// What a script returns.
    pub(crate) fn run(&self, script: &str) -> Result<Value> {
        self.command("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until what a script returns is as wanted.
    pub(crate) fn is(&self, what: &str, script: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let mut last = Value::Null;
        let found = wait_for(what, LATER, || {
            last = self.run(script)?;
            Ok(wanted(&last).then_some(()))
        });
        found.with_context(|| format!("it was {last}"))
    }

    /// Presses the keys of a text, wherever the focus is.
    pub(crate) fn press(&self, keys: &str) -> Result<()> {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        let keyboard = json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] });
        self.command("/actions", &keyboard).map(drop)
    }

    /// Clicks into the middle of what a selector finds.
    pub(crate) fn click(&self, selector: &str) -> Result<()> {
        let script = format!(
            "const found = document.querySelector({}); found.scrollIntoView({{ block: 'center' }});
             const box = found.getBoundingClientRect();
             return [box.left + box.width / 2, box.top + box.height / 2].map(Math.round)",
            json!(selector)
        );
        let at = self.run(&script)?;
        let actions = json!([
            { "type": "pointerMove", "duration": 0, "x": at[0], "y": at[1] },
            { "type": "pointerDown", "button": 0 },
            { "type": "pointerUp", "button": 0 },
        ]);
        let mouse = json!({ "actions": [{
            "type": "pointer", "id": "mouse", "parameters": { "pointerType": "mouse" }, "actions": actions
        }] });
        self.command("/actions", &mouse).map(drop)
    }

    /// What the operator likes better, `dark` or `light`.
    pub(crate) fn prefers(&self, scheme: &str) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.command("/goog/cdp/execute", &command).map(drop)
    }

    /// What the browser complains of.
    pub(crate) fn log(&self) -> Result<Vec<Value>> {
        let log = self.command("/se/log", &json!({ "type": "browser" }))?;
        Ok(log.as_array().cloned().unwrap_or_default())
    }

    /// Keeps a picture of the whole page, for whoever names a directory in `ZT_SCREENSHOTS`.
    pub(crate) fn shot(&self, name: &str) -> Result<()> {
        let Some(directory) = std::env::var_os("ZT_SCREENSHOTS").map(PathBuf::from) else {
            return Ok(());
        };
        let command = json!({ "cmd": "Page.captureScreenshot", "params": { "captureBeyondViewport": true } });
        let taken = self.command("/goog/cdp/execute", &command)?;
        let data = taken["data"].as_str().context("a picture")?;
        // Whoever looks at it turns it into bytes.
        Ok(std::fs::write(directory.join(format!("{name}.base64")), data)?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = request(self.address, "DELETE", &self.session, "");
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The value that chromedriver answers with. It speaks HTTP/1.1 alone, and leaves the connection open.
fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LATER))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(
            reader.read_line(&mut head)? > 0,
            "{path}: no answer, but {head:?}"
        );
    }
    let head = head.to_ascii_lowercase();
    let length = head.split_once("content-length:").context("a length")?.1;
    let length = length.lines().next().context("a length")?.trim().parse()?;
    let mut answer = vec![0; length];
    reader.read_exact(&mut answer)?;
    let value = serde_json::from_slice::<Value>(&answer)?["value"].take();
    ensure!(head.starts_with("http/1.1 200"), "{path}: {value}");
    Ok(value)
}
