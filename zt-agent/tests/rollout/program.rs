// SPDX-License-Identifier: Apache-2.0
//! Runs the program.

use std::path::Path;
use std::process::{Command, Output};

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// What the program did.
pub(crate) struct Ran(Output);

impl Ran {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().expect("not killed")
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).expect("UTF-8")
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).expect("UTF-8")
    }

    /// What it printed, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout()).unwrap_or_else(|error| panic!("{error}: {}", self.stderr()))
    }
}

/// Runs it in an environment without settings.
pub(crate) fn zt_agent(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zt-agent"));
    Ran(command.args(arguments).env_clear().output().expect("runs"))
}

/// `spiffe://hanzo.ai/k8s/<name>`.
pub(crate) fn id(name: &str) -> String {
    format!("spiffe://hanzo.ai/k8s/{name}")
}

/// A policy of these rules.
pub(crate) fn policy(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n{rules}  defaultAction: DENY\n"
    )
}

/// A rule that allows `from` to reach `to` at `ports`.
pub(crate) fn rule(from: &str, to: &str, ports: &str) -> String {
    format!(
        "    - from: {{spiffe: \"{}\"}}\n      to: [{{spiffe: \"{}\", ports: [{ports}]}}]\n",
        id(from),
        id(to)
    )
}

/// Where something answers, as long as the runtime is there, as an agent that has one policy in force.
pub(crate) fn in_force(runtime: &Runtime, name: &str, document: &Value) -> String {
    let answer = json!({ "policies": [{ "name": name, "document": document }] });
    answering(runtime, "/v1/policies", answer)
}

/// Where something answers, as long as the runtime is there, as an agent does that is asked for this.
pub(crate) fn answering(runtime: &Runtime, path: &str, answer: Value) -> String {
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let api = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new().route(path, get(async || axum::Json(answer)));
    runtime.spawn(async { axum::serve(listener, router).await });
    api
}

/// A directory with these files.
pub(crate) fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("tempdir");
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("in the directory")).expect("directory");
        std::fs::write(path, text).expect("write");
    }
    directory
}

pub(crate) fn shown(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
