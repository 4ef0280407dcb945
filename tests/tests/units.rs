// SPDX-License-Identifier: Apache-2.0
//! systemd takes the units of a host as they are, and says so of each line.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Where the package puts the program.
const INSTALLED: &str = "/usr/bin/zt-agent";

fn unit(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// What `systemd-analyze verify` says of a unit that starts the program that was built: whether it is content, and its words.
fn verify(name: &str, text: &str) -> Result<(bool, String)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join(name);
    let built = zt_tests::agent::binary()?;
    let built = built.to_str().context("plain letters")?;
    fs::write(&file, text.replace(INSTALLED, built))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&file)
        .env("SYSTEMD_LOG_LEVEL", "info")
        .output()
        .context("cannot run systemd-analyze: run `apt-get install systemd`")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // Older ones warn of what they do not know, and are content.
    let good = output.status.success() && !said.contains(name);
    Ok((good, said))
}

#[test]
fn systemd_takes_every_line_of_the_units() -> Result<()> {
    for name in ["zt-agent.service", "zt-engine.service"] {
        let text = unit(name)?;
        ensure!(text.contains(&format!("ExecStart={INSTALLED} ")), "{name}");
        let (good, said) = verify(name, &text)?;
        ensure!(good, "{name}: {said}");
        // Of everything that could be wrong with it, it says so.
        for (right, wrong) in [
            ("NoNewPrivileges=", "NoNewPriviliges="),
            ("Type=notify", "Type=notifies"),
            ("TimeoutStopSec=30", "TimeoutStopSec=soon"),
            ("[Install]", "[Instal]"),
            (INSTALLED, "/usr/bin/zt-agent-that-is-not-there"),
        ] {
            ensure!(text.contains(right), "{name} has no {right}");
            let (good, said) = verify(name, &text.replace(right, wrong))?;
            ensure!(!good, "{name} with {wrong}: {said}");
        }
    }
    Ok(())
}
