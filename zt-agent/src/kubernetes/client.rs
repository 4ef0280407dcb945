// SPDX-License-Identifier: Apache-2.0
//! The way to the API server: the pod's service account, or a kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use tokio::time::timeout;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest pause that the server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Most bytes of an answer that says why not.
const MAX_REASON: usize = 64 << 10;

/// Why the API server cannot be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig is missing or makes no sense.
    #[error("the kubeconfig {path} cannot be used (`kubernetes.kubeconfig`, KUBECONFIG): {message}")]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// There is neither a service account nor a kubeconfig.
    #[error(
        "no way to the Kubernetes API: this is no pod with a service account ({message}), and no kubeconfig is named; set `kubernetes.kubeconfig` or KUBECONFIG"
    )]
    Nowhere {
        /// What is missing of a service account.
        message: String,
    },
    /// No connection, or one that broke.
    #[error("the Kubernetes API server cannot be reached: {0}")]
    Unreachable(String),
    /// It does not answer.
    #[error("the Kubernetes API server did not answer within {0:?}")]
    Silent(Duration),
    /// It refuses us.
    #[error(
        "the Kubernetes API server refuses {what} ({code}): {message}; what this role of ours may do in the cluster (its ClusterRole) does not include that: docs/kubernetes.md has what it needs"
    )]
    Refused {
        /// What was asked for.
        what: String,
        /// 401 or 403.
        code: u16,
        /// What it said.
        message: String,
    },
    /// What was asked for is no longer known: it has to be listed again.
    #[error("the Kubernetes API server no longer knows what happened since {version}")]
    Gone {
        /// The version that was asked from.
        version: String,
    },
    /// It answers with an error.
    #[error("the Kubernetes API server answers {code} for {what}: {message}")]
    Failed {
        /// What was asked for.
        what: String,
        /// The status.
        code: u16,
        /// What it said.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The answer is larger than one may be.
    #[error("the Kubernetes API server's answer for {what} has more than {limit} bytes")]
    TooLong {
        /// What was asked for.
        what: String,
        /// The bound.
        limit: usize,
    },
    /// The answer is not what the API answers.
    #[error("the Kubernetes API server's answer for {what} is not understood: {message}")]
    Garbled {
        /// What was asked for.
        what: String,
        /// Why.
        message: String,
    },
}

impl ClientError {
    /// How long the server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// The API server. Cheap to clone. Nothing is connected until something is asked.
#[derive(Clone)]
pub struct Client {
    inner: kube::Client,
    /// How long an answer may take to begin, and a whole one to come.
    patience: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// By `kubeconfig` if one is named, else by the service account of the pod that this is, else by `KUBECONFIG`. An error
    /// says what is missing; that the server does not answer is none. Must be called inside a tokio runtime.
    pub async fn new(kubeconfig: Option<&Path>, patience: Duration) -> Result<Self, ClientError> {
        let config = if let Some(path) = kubeconfig {
            from_file(path).await?
        } else {
            match kube::Config::incluster() {
                Ok(config) => config,
                Err(error) => {
                    let named = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
                    let path = named.ok_or_else(|| ClientError::Nowhere {
                        message: error.to_string(),
                    })?;
                    from_file(Path::new(&path)).await?
                }
            }
        };
        Self::from_config(config, patience)
    }

    fn from_config(mut config: kube::Config, patience: Duration) -> Result<Self, ClientError> {
        config.connect_timeout = Some(CONNECT.min(patience));
        // A watch says nothing for a long time; who is silent for too long is found out by whoever reads.
        config.read_timeout = None;
        // Tries are counted and paced here.
        config.default_retry = false;
        let unusable = |error: kube::Error| ClientError::Unreachable(whole(&error));
        Ok(Self {
            inner: kube::Client::try_from(config).map_err(unusable)?,
            patience,
        })
    }

    /// Asks with `GET`; the answer's body is still to be read. `what` names it in errors.
    pub(super) async fn open(&self, uri: &str, what: &str) -> Result<Response<Body>, ClientError> {
        self.send(Method::GET, uri, None, what).await
    }

    /// Which release of Kubernetes answers.
    pub async fn release(&self) -> Result<String, ClientError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            git_version: String,
        }
        let what = "its version";
        let answer = self.get("/version", what, MAX_REASON).await?;
        let version: Version = serde_json::from_slice(&answer).map_err(|error| ClientError::Garbled {
            what: what.to_owned(),
            message: error.to_string(),
        })?;
        Ok(version.git_version)
    }

    /// Asks for something, and reads the whole answer, at most `limit` bytes.
    pub(super) async fn get(&self, uri: &str, what: &str, limit: usize) -> Result<Vec<u8>, ClientError> {
        let response = self.open(uri, what).await?;
        let read = collect(response.into_body(), what, limit);
        timeout(self.patience, read)
            .await
            .map_err(|_| ClientError::Silent(self.patience))?
    }

    /// Sends a change: `content` is its media type and its body.
    pub async fn change(
        &self,
        method: Method,
        uri: &str,
        content: Option<(&str, Vec<u8>)>,
        what: &str,
        limit: usize,
    ) -> Result<Vec<u8>, ClientError> {
        let response = self.send(method, uri, content, what).await?;
        let read = collect(response.into_body(), what, limit);
        timeout(self.patience, read)
            .await
            .map_err(|_| ClientError::Silent(self.patience))?
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        content: Option<(&str, Vec<u8>)>,
        what: &str,
    ) -> Result<Response<Body>, ClientError> {
        let garbled = |error: hyper::http::Error| ClientError::Garbled {
            what: what.to_owned(),
            message: error.to_string(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(ACCEPT, "application/json");
        let body = match content {
            Some((kind, body)) => {
                request = request.header(CONTENT_TYPE, kind);
                body
            }
            None => Vec::new(),
        };
        let request = request.body(Body::from(body)).map_err(garbled)?;
        let response = timeout(self.patience, self.inner.send(request))
            .await
            .map_err(|_| ClientError::Silent(self.patience))?
            .map_err(|error| ClientError::Unreachable(whole(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.failure(response, what).await)
    }

    async fn failure(&self, response: Response<Body>, what: &str) -> ClientError {
        let status = response.status();
        let seconds = response.headers().get(RETRY_AFTER);
        let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
        let read = timeout(self.patience, collect(response.into_body(), what, MAX_REASON));
        let body = match read.await {
            Ok(Ok(body)) => body,
            _ => Vec::new(),
        };
        failed(status.as_u16(), &body, what, retry_after)
    }
}

/// What an error's status and body mean.
pub(super) fn failed(code: u16, body: &[u8], what: &str, retry_after: Option<Duration>) -> ClientError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        message: Option<String>,
        reason: Option<String>,
    }
    let said: Status = serde_json::from_slice(body).unwrap_or_default();
    let message = said.message.or(said.reason);
    // Somebody else's text, on its way to a log.
    let message: String = message
        .unwrap_or_else(|| "it does not say why".to_owned())
        .chars()
        .filter(|character| !character.is_control())
        .take(512)
        .collect();
    let what = what.to_owned();
    match StatusCode::from_u16(code) {
        Ok(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => ClientError::Refused { what, code, message },
        Ok(StatusCode::GONE) => ClientError::Gone { version: message },
        _ => ClientError::Failed {
            what,
            code,
            message,
            retry_after,
        },
    }
}

/// The next bytes of a body; `None` at its end.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, ClientError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::Unreachable(whole(&error)))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn collect(mut body: Body, what: &str, limit: usize) -> Result<Vec<u8>, ClientError> {
    let mut read = Vec::new();
    while let Some(bytes) = next(&mut body).await? {
        if read.len() + bytes.len() > limit {
            return Err(ClientError::TooLong {
                what: what.to_owned(),
                limit,
            });
        }
        read.extend_from_slice(&bytes);
    }
    Ok(read)
}

async fn from_file(path: &Path) -> Result<kube::Config, ClientError> {
    let unusable = |message: String| ClientError::Kubeconfig {
        path: path.to_path_buf(),
        message,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(whole(&error)))?;
    let through_a_proxy = kubeconfig.clusters.iter().any(|named| {
        named
            .cluster
            .as_ref()
            .is_some_and(|cluster| cluster.proxy_url.is_some())
    });
    if through_a_proxy {
        let message = "`proxy-url` is not supported: the agent talks to the API server itself".to_owned();
        return Err(unusable(message));
    }
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unusable(whole(&error)))?;
    // That of the environment is for people's programs.
    config.proxy_url = None;
    Ok(config)
}

/// An error with its causes.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}
