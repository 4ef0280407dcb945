// SPDX-License-Identifier: Apache-2.0
//! Just enough of an HTTP client for the agent's local API.
//!
//! It speaks HTTP/1.0: the server then never answers in chunks, and ends the connection after the body.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Longer than an honest answer takes on a busy machine: a change of policy may wait for its turn and for the nodes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON, whatever the status.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON ({}): {}", self.status, self.body))
    }

    /// The answer itself, if its status is 2xx.
    pub fn success(self) -> Result<Self> {
        if (200..300).contains(&self.status) {
            Ok(self)
        } else {
            bail!("{}: {}", self.status, self.body)
        }
    }
}

/// A text for the query of a path: each byte by its number.
pub fn encoded(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
    text.bytes()
        .flat_map(|byte| ['%', digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// `GET`s a path, with its query.
pub fn get(server: SocketAddr, path: &str) -> Result<Answer> {
    request(server, "GET", path, None)
}

/// The same over a Unix socket.
pub fn get_over(socket: &Path, path: &str) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer with a head")?;
    let status = head.split(' ').nth(1).context("a status")?;
    Ok(Answer {
        status: status.parse()?,
        body: body.to_owned(),
    })
}

/// `POST`s JSON to a path.
pub fn post(server: SocketAddr, path: &str, body: &Value) -> Result<Answer> {
    request(server, "POST", path, Some(&body.to_string()))
}

/// Sends one request, with a body of JSON text if there is one, and reads the whole answer.
pub fn request(server: SocketAddr, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
    let (status, mut reader) = open(server, method, path, body)?;
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(Answer { status, body })
}

/// Follows a stream of server-sent events: each item is the JSON of one event's `data`.
///
/// Ends with the connection, or with an error when nothing comes for `patience`.
pub fn events(
    server: SocketAddr,
    path: &str,
    patience: Duration,
) -> Result<impl Iterator<Item = Result<Value>>> {
    let (status, reader) = open(server, "GET", path, None)?;
    if status != 200 {
        bail!("{path}: status {status}");
    }
    reader.get_ref().set_read_timeout(Some(patience))?;
    Ok(reader.lines().filter_map(|line| match line {
        Ok(line) => line
            .strip_prefix("data:")
            .map(|data| Ok(serde_json::from_str(data.trim())?)),
        Err(error) => Some(Err(error.into())),
    }))
}

/// Sends a request and reads the answer's head.
fn open(
    server: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, BufReader<TcpStream>)> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head =
        format!("{method} {path} HTTP/1.0\r\nHost: {server}\r\nAccept: */*\r\nConnection: close\r\n");
    if let Some(body) = body {
        head.push_str("Content-Type: application/json\r\nContent-Length: ");
        head.push_str(&body.len().to_string());
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head.push_str(body.unwrap_or(""));
    stream.write_all(head.as_bytes())?;

    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.trim().parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: {line:?}"))?;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((status, reader));
        }
    }
}
