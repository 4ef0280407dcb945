// SPDX-License-Identifier: Apache-2.0
//! The client of the agent's API: JSON over HTTP to a loopback address or the Unix socket, or over TLS.

mod connect;
mod sse;
mod tls;

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use connect::{Connector, Way};
pub use sse::{Event, EventStream};
pub use tls::TlsArgs;

/// The agent of this machine, by whichever of these is there: records name who comes over the socket better.
const LOCAL: &str = "local";
const LOCAL_SOCKET: &str = "/run/zt/agent.sock";
const LOCAL_URL: &str = "http://127.0.0.1:8054";

/// How long an answer may take to begin and, but for streams, to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Where the agent is, for every command that asks it.
#[derive(Clone, Debug, Default, Args)]
pub struct ApiArgs {
    /// Where the agent's API is: `http://…`, `https://…` or `unix:///run/zt/agent.sock`; `local` is that socket, or
    /// `http://127.0.0.1:8054` where it cannot be opened
    #[arg(long, env = "ZT_API", value_name = "URL", default_value = LOCAL)]
    pub api: String,
    /// How to reach an agent elsewhere.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Why the agent could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL makes no sense.
    #[error(
        "`{url}` is not the URL of an agent's API; write one like http://127.0.0.1:8054, https://localhost:8054 or \
         unix:///run/zt/agent.sock"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// The certificates cannot be used.
    #[error("{0}")]
    Tls(String),
    /// Nobody listens there.
    #[error(
        "cannot reach {url}: {cause}; is zt-agent running? See `systemctl status zt-agent`, or name its API with --api"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        cause: String,
    },
    /// The connection broke.
    #[error("{url} stopped answering: {cause}")]
    Broken {
        /// Where.
        url: String,
        /// What happened.
        cause: String,
    },
    /// It took too long.
    #[error("{url} did not answer within {} seconds; see the agent's log", PATIENCE.as_secs())]
    Slow {
        /// Where.
        url: String,
    },
    /// The agent answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The problem details' `code`, where there is one.
        code: Option<String>,
        /// What the agent says, with every problem that it found.
        message: String,
    },
    /// Something answered that is not an agent, or not of this version.
    #[error("{url} did not answer with JSON; is another service listening there?")]
    NotJson {
        /// Where.
        url: String,
    },
}

/// A change of a policy, as it is sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// `PUT` or `DELETE`.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// The policy, YAML or JSON.
    pub document: Option<String>,
}

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    max_answer_bytes: usize,
    http: HttpClient<Connector, Full<Bytes>>,
}

impl Client {
    /// A client of the agent at `arguments.api`; nothing is asked yet.
    pub fn new(arguments: &ApiArgs) -> Result<Self, ClientError> {
        let (base, way) = way(arguments)?;
        let http = HttpClient::builder(TokioExecutor::new()).build(Connector(way));
        Ok(Self {
            base,
            max_answer_bytes: MAX_ANSWER_BYTES,
            http,
        })
    }

    /// The same, reading no answer that is longer.
    #[must_use]
    pub fn with_limit(mut self, max_answer_bytes: usize) -> Self {
        self.max_answer_bytes = max_answer_bytes;
        self
    }

    /// The answer to `GET path?query`.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, ClientError> {
        let target = format!("{path}{}", encoded(query));
        self.json(Method::GET, &target, None).await
    }

    /// The answer to `GET path`, whatever it is, as text.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let url = format!("{}{path}", self.base);
        let response = self.send(Method::GET, &url, "*/*", None).await?;
        let bytes = self.body(response).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The answer to `POST path` with `body`.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// The answer to `PUT path` with `body`.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// The answer to a change of a policy.
    pub async fn send_document(&self, sent: Sent) -> Result<Value, ClientError> {
        let mut headers = Vec::new();
        headers.extend(sent.if_match.map(|tag| (IF_MATCH, tag)));
        headers.extend(sent.if_none_match.map(|tag| (IF_NONE_MATCH, tag)));
        headers.extend(
            sent.document
                .is_some()
                .then(|| (CONTENT_TYPE, "application/yaml".to_owned())),
        );
        let url = format!("{}{}", self.base, sent.target);
        let body = Bytes::from(sent.document.unwrap_or_default());
        let response = self
            .request(sent.method, &url, "application/json", headers, body)
            .await?;
        self.answer(response, &url).await
    }

    /// The server-sent events of `GET path?query`, until the agent ends them.
    pub async fn events(&self, path: &str, query: &[(&str, String)]) -> Result<EventStream, ClientError> {
        let url = format!("{}{path}{}", self.base, encoded(query));
        let response = self.send(Method::GET, &url, "text/event-stream", None).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, &url).await);
        }
        Ok(EventStream::new(response.into_body(), self.base.clone()))
    }

    async fn json(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let url = format!("{}{target}", self.base);
        let response = self.send(method, &url, "application/json", body).await?;
        self.answer(response, &url).await
    }

    async fn answer(&self, response: Response<Incoming>, url: &str) -> Result<Value, ClientError> {
        if !response.status().is_success() {
            return Err(self.refusal(response, url).await);
        }
        let bytes = self.body(response).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| ClientError::NotJson {
            url: self.base.clone(),
        })
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let content = body.map(|_| (CONTENT_TYPE, "application/json".to_owned()));
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.request(method, url, accept, content.into_iter().collect(), bytes)
            .await
    }

    async fn request(
        &self,
        method: Method,
        url: &str,
        accept: &str,
        headers: Vec<(HeaderName, String)>,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(url).header(ACCEPT, accept);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| ClientError::Url { url: url.to_owned() })?;
        match timeout(PATIENCE, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let (url, cause) = (self.base.clone(), innermost(&error));
                Err(if error.is_connect() {
                    ClientError::Unreachable { url, cause }
                } else {
                    ClientError::Broken { url, cause }
                })
            }
            Err(_) => Err(ClientError::Slow {
                url: self.base.clone(),
            }),
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), self.max_answer_bytes).collect();
        match timeout(PATIENCE, body).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) => Err(ClientError::Broken {
                url: self.base.clone(),
                cause: innermost(error.as_ref()),
            }),
            Err(_) => Err(ClientError::Slow {
                url: self.base.clone(),
            }),
        }
    }

    /// The error that a response with an error status is.
    async fn refusal(&self, response: Response<Incoming>, url: &str) -> ClientError {
        let status = response.status();
        match self.body(response).await {
            Ok(bytes) => refused(status, url, &bytes),
            Err(error) => error,
        }
    }
}

/// The base of URLs, and how to get there.
fn way(arguments: &ApiArgs) -> Result<(String, Way), ClientError> {
    let wrong = || ClientError::Url {
        url: arguments.api.clone(),
    };
    let found = if arguments.api == LOCAL {
        (LOCAL_URL.to_owned(), Way::Local(LOCAL_SOCKET.into()))
    } else if let Some(path) = arguments.api.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(wrong());
        }
        ("http://localhost".to_owned(), Way::Unix(path.into()))
    } else {
        let url = arguments.api.trim_end_matches('/');
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        if uri.host().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(wrong());
        }
        let way = match uri.scheme_str() {
            Some("http") => Way::Tcp,
            Some("https") => Way::Tls(arguments.tls.config()?),
            _ => return Err(wrong()),
        };
        (url.to_owned(), way)
    };
    Ok(found)
}

/// Reads problem details (RFC 9457); any other body is an error of something that is not the agent.
fn refused(status: StatusCode, url: &str, body: &[u8]) -> ClientError {
    let details: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| details.get(field).and_then(Value::as_str);
    let code = text("code").map(str::to_owned);
    let mut message = match text("detail").or_else(|| text("title")) {
        Some(text) => text.to_owned(),
        None => format!("{url} answered {status}; is another service listening there?"),
    };
    for error in details
        .get("errors")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let Ok(problem) = serde_json::from_value::<crate::problem::Problem>(error.clone()) {
            // Writing to a String cannot fail.
            let _ = write!(message, "\n{problem}");
        } else if let Some(text) = error.get("message").and_then(Value::as_str) {
            let _ = write!(message, "\n{text}");
        }
    }
    ClientError::Refused {
        status,
        code,
        message,
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// `?a=b&c=d`, percent-encoded; nothing for no pairs.
fn encoded(query: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in query.iter().enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
