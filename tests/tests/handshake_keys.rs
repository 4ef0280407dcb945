// SPDX-License-Identifier: Apache-2.0
//! The keys of identity in the handshake: renewed under load and left to the next agent without one refused connection, and
//! to be found in the kernel's map only.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::json;
use zt_common::abi::{KeyId, NodeKey};
use zt_common::names;
use zt_tests::pair::{pair_after_agent, policy};
use zt_tests::probe::{Flood, Operation};
use zt_tests::{AgentBuilder, Scene, eventually};

const SOON: Duration = Duration::from_secs(60);

struct Keys(HashMap<MapData, KeyId, NodeKey>);

impl Keys {
    fn of(scene: &Scene) -> Result<Self> {
        let map = MapData::from_pin(scene.sandbox().maps()?.join(names::KEYS)).context("no zt_keys")?;
        Ok(Self(HashMap::try_from(Map::HashMap(map))?))
    }

    fn all(&self) -> Result<Vec<(KeyId, NodeKey)>> {
        let mut all = self.0.iter().collect::<Result<Vec<_>, _>>()?;
        all.sort_by_key(|(id, _)| id.epoch);
        Ok(all)
    }

    fn epochs(&self) -> Result<Vec<u64>> {
        Ok(self.all()?.into_iter().map(|(id, _)| id.epoch).collect())
    }

    /// Makes the newest key one of long ago, and waits until there is another.
    fn renew(&mut self) -> Result<()> {
        let all = self.all()?;
        let (id, key) = *all.last().context("no key")?;
        self.0.insert(id, NodeKey { made: 0, ..key }, 0)?;
        eventually("a new key", SOON, || Ok(self.epochs()?.last() > Some(&id.epoch)))
    }
}

#[test]
fn renewing_under_load_refuses_nothing() -> Result<()> {
    let (scene, server, mut client, agent) = pair_after_agent("keys-renewed", &policy(), |agent| agent)?;
    let mut keys = Keys::of(&scene)?;
    assert_eq!(keys.epochs()?, [1]);
    let duration = Duration::from_secs(12);
    client.send(Operation::ConnectMany(Flood {
        duration: Some(duration),
        pace: Some(Duration::from_millis(2)),
        echo: true,
        ..Flood::new(server.v4(80), u64::MAX)
    }))?;
    let before = keys.all()?;
    for _ in 0..6 {
        keys.renew()?;
        // The new one is in use before the oldest goes.
        eventually("the one in use and the one before", SOON, || {
            Ok(keys.all()?.len() == 2)
        })?;
    }
    let outcome = client.wait()?.ok()?.outcomes.swap_remove(0);
    let ok = outcome.count("ok");
    assert!(ok > 100, "{outcome:?}");
    assert_eq!(outcome.counts.len(), 1, "{outcome:?}");
    assert_eq!(agent.counter("tags_invalid")?, 0);
    let new = keys.all()?;
    assert!(
        new.iter()
            .all(|(_, key)| before.iter().all(|(_, old)| old.k0 != key.k0))
    );
    let ok = usize::try_from(ok)?;
    let records = agent.records("decision=ALLOW", ok, |record| record["proof"] == "mutual")?;
    assert_eq!(records.len(), ok);
    Ok(())
}

/// An agent that was killed left its key in the map, handshakes go on with it, and so does the next agent.
#[test]
fn the_next_agent_goes_on_with_the_key() -> Result<()> {
    let (scene, server, mut client, mut agent) = pair_after_agent("keys-kept", &policy(), |agent| agent)?;
    let keys = Keys::of(&scene)?;
    let before = keys.all()?;
    agent.kill()?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    agent.restart()?;
    assert!(keys.all()? == before, "no other key");
    assert_eq!(client.talk(server.v4(80))?, "ok");
    agent.records("decision=ALLOW", 2, |record| record["proof"] == "mutual")?;
    Ok(())
}

/// What was signed before it was switched off does not verify when it is on again, however soon that is.
#[test]
fn keys_go_when_nobody_uses_them() -> Result<()> {
    let (scene, server, mut client, mut agent) = pair_after_agent("keys-off", &policy(), |agent| agent)?;
    let keys = Keys::of(&scene)?;
    assert_eq!(keys.epochs()?, [1]);
    agent.restart_with("handshake", json!("off"))?;
    eventually("no key", SOON, || Ok(keys.all()?.is_empty()))?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    agent.restart_with("handshake", json!("auto"))?;
    assert_eq!(keys.epochs()?, [2]);
    assert_eq!(client.talk(server.v4(80))?, "ok");
    agent.records("decision=ALLOW", 1, |record| record["proof"] == "mutual")?;
    Ok(())
}

/// Neither the bytes nor the numbers of a key are in anything that the agent writes or says.
#[test]
fn a_key_is_nowhere_else() -> Result<()> {
    let all = |agent: AgentBuilder| agent.env("ZT_LOG", "trace");
    let (scene, server, mut client, mut agent) = pair_after_agent("keys-secret", &policy(), all)?;
    let mut keys = Keys::of(&scene)?;
    let mut secret = keys.all()?;
    keys.renew()?;
    secret.extend(keys.all()?);
    assert_eq!(client.talk(server.v4(80))?, "ok");
    agent.records("decision=ALLOW", 1, |record| record["proof"] == "mutual")?;
    let mut said = Vec::new();
    for path in ["/v1/status", "/v1/identities", "/v1/policies", "/v1/audit"] {
        said.push((path.to_owned(), agent.get(path)?.to_string().into_bytes()));
    }
    let status = agent.command(&["status"]).output()?;
    said.push(("status".to_owned(), status.stdout));
    // What is sent to others, as it is before it is packed.
    let archive = scene.sandbox().directory().join("dump.tar.gz");
    let path = archive.to_str().context("plain letters")?;
    let dumped = agent.command(&["sysdump", "--output-file", path]).output()?;
    ensure!(
        dumped.status.success(),
        "{}",
        String::from_utf8_lossy(&dumped.stderr)
    );
    let unpacked = Command::new("tar").arg("-xzOf").arg(&archive).output()?;
    ensure!(unpacked.status.success() && !unpacked.stdout.is_empty(), "tar");
    said.push(("sysdump".to_owned(), unpacked.stdout));
    agent.terminate()?;
    ensure!(
        agent.log()?.contains("\"level\":\"TRACE\""),
        "the log is not at its most talkative"
    );
    files(scene.sandbox().directory(), &mut said)?;
    ensure!(
        said.iter().any(|(name, _)| name.ends_with("audit.db")),
        "no database was looked at"
    );
    for (_, key) in secret {
        for half in [key.k0, key.k1] {
            let texts = [
                half.to_string(),
                format!("{half:x}"),
                format!("{:x}", half.swap_bytes()),
            ];
            let mut forms = vec![half.to_ne_bytes().to_vec(), half.to_be_bytes().to_vec()];
            forms.extend(texts.map(String::into_bytes));
            for (name, bytes) in &said {
                for form in &forms {
                    let found = bytes.windows(form.len()).any(|window| window == form.as_slice());
                    ensure!(!found, "a key is in {name}");
                }
            }
        }
    }
    Ok(())
}

fn files(directory: &Path, to: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files(&entry.path(), to)?;
        } else if kind.is_file() {
            to.push((entry.path().display().to_string(), fs::read(entry.path())?));
        }
    }
    Ok(())
}
