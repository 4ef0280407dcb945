// SPDX-License-Identifier: Apache-2.0
//! One engine: its policies, verified; its feed; reports to it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::Settings;
use crate::cli::client::{ApiArgs, Client, ClientError, EventStream, TlsArgs};
use crate::policy::{self, Document, PolicySet, Problem};

/// The longest answer that is read: all policies of a directory, written as JSON, are far shorter.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Problems of one answer that are spelled out.
const SHOWN_PROBLEMS: usize = 3;

/// What is shown to an engine over TLS, and who is believed to be one.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Our certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who issues the engine's certificate, PEM.
    pub ca: PathBuf,
}

/// Why the policy of the engine is not, or not known to be, in force.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It cannot be reached, or the connection broke.
    #[error("the policy engine at {url} cannot be reached: {cause}")]
    Unreachable {
        /// The engine.
        url: String,
        /// What happened.
        cause: String,
    },
    /// It ended the feed.
    #[error("the policy engine at {url} ended the feed")]
    Ended {
        /// The engine.
        url: String,
    },
    /// No heartbeat came.
    #[error("the policy engine at {url} has gone silent")]
    Silent {
        /// The engine.
        url: String,
    },
    /// It took too long over an answer.
    #[error("the policy engine at {url} takes too long to answer")]
    Slow {
        /// The engine.
        url: String,
    },
    /// It said no.
    #[error("the policy engine at {url} refuses: {message}")]
    Refused {
        /// The engine.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// The problem details' `code`, where there is one.
        code: Option<String>,
        /// In its words.
        message: String,
    },
    /// The certificates cannot be used.
    #[error("the policy engine at {url} cannot be asked: {cause}")]
    Certificates {
        /// The engine.
        url: String,
        /// What is wrong with them.
        cause: String,
    },
    /// The answer is too long.
    #[error("the answer of {url} is longer than {MAX_ANSWER_BYTES} bytes and was refused")]
    TooLong {
        /// The engine.
        url: String,
    },
    /// The answer is none of an engine.
    #[error("{url} does not answer as a policy engine: is another service there, or another version?")]
    NotAnEngine {
        /// The engine.
        url: String,
    },
    /// The digest is not that of the documents.
    #[error("the answer of {url} was refused: it says digest {said}, and its documents have {found}")]
    Digest {
        /// The engine.
        url: String,
        /// As the engine says.
        said: String,
        /// As it is.
        found: String,
    },
    /// Documents are not valid on this node.
    #[error("the answer of {url} was refused: {}", shown(problems))]
    Invalid {
        /// The engine.
        url: String,
        /// What is wrong, `engine/NAME` being the file of a policy.
        problems: Vec<Problem>,
    },
    /// There are no policies in it.
    #[error(
        "the answer of {url} was refused: it has no policy; to allow nothing, there is a policy without rules"
    )]
    Empty {
        /// The engine.
        url: String,
    },
    /// The node did not put it in force.
    #[error(
        "the policy {digest} of {url} did not come into force on this node: see the errors of its policy"
    )]
    Unusable {
        /// The engine.
        url: String,
        /// The policy.
        digest: String,
    },
    /// What is announced is not what is given.
    #[error(
        "{url} announces {announced} and gives {found}: do the engines behind it share one policy directory?"
    )]
    Disagreement {
        /// The engine.
        url: String,
        /// By the feed.
        announced: String,
        /// By the list.
        found: String,
    },
    /// There is nothing to start with.
    #[error("{error}, and there is no last good policy: {copy}; start an engine at {url}")]
    Nothing {
        /// The engine.
        url: String,
        /// Why it gave none.
        error: String,
        /// Why the copy on disk gave none.
        copy: String,
    },
}

fn shown(problems: &[Problem]) -> String {
    let mut text: Vec<String> = problems
        .iter()
        .take(SHOWN_PROBLEMS)
        .map(ToString::to_string)
        .collect();
    if problems.len() > SHOWN_PROBLEMS {
        text.push(format!("and {} more", problems.len() - SHOWN_PROBLEMS));
    }
    text.join("; ")
}

impl FollowError {
    /// What a request to `url` came to.
    pub(super) fn of(url: &str, error: ClientError) -> Self {
        let url = url.to_owned();
        match error {
            ClientError::Broken { cause, .. } if cause.contains("length limit") => Self::TooLong { url },
            ClientError::Unreachable { cause, .. } | ClientError::Broken { cause, .. } => {
                Self::Unreachable { url, cause }
            }
            ClientError::Slow { .. } => Self::Slow { url },
            ClientError::Refused {
                status,
                code,
                message,
            } => Self::Refused {
                url,
                status,
                code,
                message: message.chars().take(500).collect(),
            },
            ClientError::NotJson { .. } => Self::NotAnEngine { url },
            ClientError::Url { .. } | ClientError::Tls(_) => {
                let cause = error.to_string();
                Self::Certificates { url, cause }
            }
        }
    }

    /// The engine cannot read what it was sent, as one of an older version cannot read a field that it does not know.
    pub(super) fn is_not_understood(&self) -> bool {
        let Self::Refused { status, code, .. } = self else {
            return false;
        };
        *status == StatusCode::BAD_REQUEST && code.as_deref() == Some("invalid_body")
    }

    /// The name that it is counted by, if an answer came and was refused.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::Slow { .. } => Some("slow"),
            Self::TooLong { .. } => Some("too_long"),
            Self::NotAnEngine { .. } => Some("not_an_engine"),
            Self::Digest { .. } => Some("digest"),
            Self::Invalid { .. } => Some("invalid"),
            Self::Empty { .. } => Some("empty"),
            Self::Unusable { .. } => Some("unusable"),
            Self::Disagreement { .. } => Some("disagreement"),
            _ => None,
        }
    }
}

/// A policy that was received and verified.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) revision: u64,
    pub(super) documents: Vec<Document>,
    pub(super) policies: PolicySet,
}

/// The part of `GET /v1/policies` that matters.
#[derive(Debug, Deserialize)]
struct Answer {
    revision: u64,
    digest: String,
    policies: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    name: String,
    document: Value,
}

/// One engine.
#[derive(Debug)]
pub(super) struct Engine {
    url: String,
    arguments: ApiArgs,
    policy: policy::Settings,
}

impl Engine {
    pub(super) fn new(settings: &Settings) -> Self {
        let tls = settings.tls.clone().map_or_else(TlsArgs::default, |tls| TlsArgs {
            tls_cert: Some(tls.cert),
            tls_key: Some(tls.key),
            tls_ca: Some(tls.ca),
        });
        let arguments = ApiArgs {
            api: settings.url.clone(),
            tls,
        };
        Self {
            url: settings.url.clone(),
            arguments,
            policy: settings.policy.clone(),
        }
    }

    /// A client with the certificates as they are on disk now: they are replaced while an agent runs.
    fn client(&self) -> Result<Client, FollowError> {
        let client = Client::new(&self.arguments).map_err(|error| FollowError::of(&self.url, error))?;
        Ok(client.with_limit(MAX_ANSWER_BYTES))
    }

    /// Each policy that comes into force there.
    pub(super) async fn feed(&self) -> Result<EventStream, FollowError> {
        let feed = self.client()?.events("/v1/revisions/stream", &[]).await;
        feed.map_err(|error| FollowError::of(&self.url, error))
    }

    /// What is in force there, verified.
    pub(super) async fn fetch(&self) -> Result<Fetched, FollowError> {
        let answer = self.client()?.get("/v1/policies", &[]).await;
        let answer = answer.map_err(|error| FollowError::of(&self.url, error))?;
        let (url, settings) = (self.url.clone(), self.policy.clone());
        // A policy of a hundred thousand rules takes a while to parse.
        let verified = tokio::task::spawn_blocking(move || verify(&url, answer, &settings));
        verified.await.unwrap_or_else(|_| {
            Err(FollowError::NotAnEngine {
                url: self.url.clone(),
            })
        })
    }

    /// Tells what is in force here.
    pub(super) async fn report(&self, node: &str, body: &Value) -> Result<(), FollowError> {
        let told = self
            .client()?
            .put(&format!("/v1/nodes/{}", segment(node)), body)
            .await;
        told.map(drop).map_err(|error| FollowError::of(&self.url, error))
    }
}

/// Text as one segment of a path.
fn segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}

/// Whether an answer is what it says, and can come into force here.
pub(super) fn verify(url: &str, answer: Value, settings: &policy::Settings) -> Result<Fetched, FollowError> {
    let url = || url.to_owned();
    let answer: Answer =
        serde_json::from_value(answer).map_err(|_| FollowError::NotAnEngine { url: url() })?;
    if answer.policies.is_empty() {
        return Err(FollowError::Empty { url: url() });
    }
    let documents = documents(
        answer
            .policies
            .iter()
            .map(|item| (item.name.as_str(), &item.document)),
    );
    let invalid = |problems| FollowError::Invalid { url: url(), problems };
    let policies = policy::parse(&documents, settings).map_err(invalid)?;
    if policies.digest() != answer.digest {
        return Err(FollowError::Digest {
            url: url(),
            said: answer.digest.chars().take(64).collect(),
            found: policies.digest().to_owned(),
        });
    }
    // A table that cannot be made is found out here, before the node is asked.
    policy::compile(&policies, &BTreeSet::new(), settings, 1).map_err(|error| {
        invalid(vec![Problem {
            file: "engine".to_owned(),
            line: 0,
            column: 0,
            field: String::new(),
            message: error.to_string(),
        }])
    })?;
    Ok(Fetched {
        revision: answer.revision,
        documents,
        policies,
    })
}

/// Documents as the node reads them, in the order of their names.
pub(super) fn documents<'d>(items: impl Iterator<Item = (&'d str, &'d Value)>) -> Vec<Document> {
    let mut documents: Vec<Document> = items
        .map(|(name, document)| Document {
            file: format!("engine/{}", name.chars().take(80).collect::<String>()),
            text: document.to_string(),
        })
        .collect();
    documents.sort_by(|a, b| a.file.cmp(&b.file));
    documents
}
