// SPDX-License-Identifier: Apache-2.0
//! As much of a kubelet as SPIRE's `k8s` attestor asks: which pods there are on this node.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

/// One that answers on its read-only port until the test ends.
#[derive(Debug)]
pub struct Kubelet {
    port: u16,
    pods: Arc<Mutex<Vec<Value>>>,
}

impl Kubelet {
    /// One with no pods.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let pods = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&pods);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let items = all.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Whoever asked may have gone.
                let _ = answer(&stream, &items);
            }
        });
        Ok(Self { port, pods })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// There is one more pod.
    pub fn put(&self, pod: Value) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(pod);
    }
}

fn answer(mut stream: &TcpStream, pods: &[Value]) -> Result<()> {
    let mut asked = BufReader::new(stream);
    let mut line = String::new();
    while asked.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods }).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    Ok(stream.write_all((head + &body).as_bytes())?)
}
