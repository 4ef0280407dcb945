// SPDX-License-Identifier: Apache-2.0
//! Several users of one machine, over a loopback address and over the socket.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::world::{Shared, policy};

/// Puts a policy in force with the command line, as that user.
fn apply(binary: &Path, user: u32, api: &str, file: &Path) {
    let output = Command::new(binary)
        .env_clear()
        .args(["policy", "apply", "--api", api, "-f"])
        .arg(file)
        .uid(user)
        .gid(user)
        .output()
        .expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_recorded_with_the_user_who_made_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("needs root: it acts as several users");
        return;
    }
    let shared = Shared::new();
    let engine = shared.engine("e1").await;
    // Where others may run and read it.
    fs::set_permissions(shared.directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let binary = shared.directory.path().join("zt-agent");
    fs::copy(env!("CARGO_BIN_EXE_zt-agent"), &binary).expect("copy");
    let socket = format!("unix://{}/agent.sock", shared.below("e1").display());
    let (first, second) = (65_534, 54_321);
    for (name, user, api) in [
        ("by-first", first, &engine.url()),
        ("by-second", second, &engine.url()),
        ("by-root", 0, &engine.url()),
        ("by-socket", 0, &socket),
    ] {
        let file = shared.below("sent").join(name);
        fs::write(&file, policy(name, &[1])).expect("write");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        apply(&binary, user, api, &file);
    }
    let query = [("type", "policy_change".to_owned())];
    let trail = engine.client().get("/v1/audit", &query).await.expect("records");
    let callers: Vec<&str> = trail["records"]
        .as_array()
        .expect("a list")
        .iter()
        .rev()
        .filter_map(|record| record["caller"].as_str())
        .collect();
    let wanted = [
        format!("uid:{first}"),
        format!("uid:{second}"),
        "uid:0".to_owned(),
    ];
    assert_eq!(callers[..3], wanted, "{trail}");
    assert!(callers[3].starts_with("uid:0 pid:"), "{callers:?}");

    // Who is gone before one could look is not served under another name.
    let body = policy("by-nobody", &[1]);
    let head = "PUT /v1/policies/by-nobody HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/yaml";
    let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for _ in 0..50 {
        let mut stream = TcpStream::connect(engine.api).expect("connects");
        stream.write_all(request.as_bytes()).expect("written");
        // What the engine sends into it makes it a reset; until then the request waits to be read.
        drop(stream);
    }
    let trail = engine.client().get("/v1/audit", &query).await.expect("records");
    let records = trail["records"].as_array().expect("a list");
    let named = |record: &Value| {
        let caller = record["caller"].as_str();
        caller.is_some_and(|caller| caller.starts_with("uid:"))
    };
    assert!(records.iter().all(named), "{trail}");
}
