// SPDX-License-Identifier: Apache-2.0
//! What the Debian package does on a host when it goes: its own script, with the real program and real pins.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use zt_tests::hooks::attached;
use zt_tests::pair::{pair, policy};
use zt_tests::{Agent, Scene};

/// Runs the script as dpkg does, with the program where the package would have put it: its words.
fn prerm(scene: &Scene, agent: &Agent, arguments: &[&str]) -> Result<String> {
    let programs = scene.sandbox().directory().join("bin");
    if !programs.exists() {
        std::fs::create_dir(&programs)?;
        symlink(zt_tests::agent::binary()?, programs.join("zt-agent"))?;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debian/prerm");
    let output = Command::new("sh")
        .arg(script)
        .args(arguments)
        .env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
        )
        .env("ZT_CONFIG", agent.files.config())
        .output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(said)
}

#[test]
fn a_removal_detaches_and_an_upgrade_leaves_all_in_force() -> Result<()> {
    let (scene, server, mut client) = pair("removal")?;
    let mut agent = scene.agent(&policy())?.start()?;
    assert!(agent.terminate()?.success());
    for arguments in [
        &["upgrade", "9.0.0"][..],
        &["failed-upgrade", "0.0.1"],
        &["deconfigure"],
    ] {
        assert_eq!(prerm(&scene, &agent, arguments)?, "", "{arguments:?}");
        assert_eq!(client.tcp(server.v4(81))?, "EPERM", "{arguments:?}");
    }
    assert!(!attached(scene.sandbox().managed())?.is_empty());
    let said = prerm(&scene, &agent, &["remove"])?;
    assert!(said.contains("pins removed"), "{said}");
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    for cgroup in [scene.sandbox().managed(), &server.cgroup] {
        assert_eq!(attached(cgroup)?, [], "{}", cgroup.path().display());
    }
    ensure!(!scene.sandbox().pins()?.exists(), "the directory of the pins");
    // Where nothing was attached, there is nothing to be said, and the removal goes on.
    prerm(&scene, &agent, &["remove"])?;
    Ok(())
}

/// dpkg must get rid of the package even where the hooks stay.
#[test]
fn a_removal_that_cannot_detach_says_so_and_goes_on() -> Result<()> {
    let (scene, _server, _client) = pair("removal-odd")?;
    let agent = scene.agent(&policy())?.start()?;
    std::fs::write(agent.files.config(), "no: configuration\n")?;
    let said = prerm(&scene, &agent, &["remove"])?;
    assert!(said.contains("the hooks could not be removed"), "{said}");
    assert!(!attached(scene.sandbox().managed())?.is_empty());
    Ok(())
}
