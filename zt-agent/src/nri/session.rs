// SPDX-License-Identifier: Apache-2.0
//! One connection to the runtime: it is told of this plugin, and asks it before each container starts.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Settings;
use super::health::{Health, Outcome};
use super::hold::{Patience, Starting, Taken};
use super::messages::{
    Configure, Configured, Container, PLUGIN_SERVICE, PodSandbox, RUNTIME_SERVICE, RegisterPlugin, Request,
    Response, RpcStatus, START_CONTAINER, StartContainer, StateChange, Synchronize, Synchronized,
    UNIMPLEMENTED,
};
use super::wire::{Decoder, Message, PLUGIN, REQUEST, RESPONSE, RUNTIME, WireError, encode};
use crate::state::Snapshot;

/// What this plugin is called, and when it is asked: after those with a lower number, whose time helps.
const NAME: &str = "zt";
const INDEX: &str = "90";
/// Starts that may be held at a time. (A runtime asks for one after the other.)
const MOST_HELD: usize = 256;
/// Read at a time.
const CHUNK: usize = 64 << 10;
/// The number of the one call that the plugin makes.
const REGISTRATION: u32 = 1;

/// Why a connection to the runtime ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The socket failed.
    #[error("{what}: {source}")]
    Socket {
        /// At what.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The runtime hung up.
    #[error("the runtime hung up; it says why in its log")]
    Closed,
    /// The runtime took too long.
    #[error("the runtime did not {what} in time")]
    Silent {
        /// Do what.
        what: &'static str,
    },
    /// What came was not framed as it must be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// What came was no message.
    #[error("what the runtime says as {what} cannot be read: {source}")]
    Unreadable {
        /// What it should have been.
        what: &'static str,
        /// Why it is not.
        source: prost::DecodeError,
    },
    /// The runtime does not want this plugin.
    #[error("the runtime refused the plugin: {message} (code {code})")]
    Refused {
        /// The status of gRPC.
        code: i32,
        /// What it says.
        message: String,
    },
}

/// What is answered to a call.
enum Answer {
    Now(Response),
    /// When the container may start.
    Start(Option<Starting>),
}

/// A start that was held, and what came of it.
struct Released {
    call: u32,
    starting: Starting,
    taken: Option<Taken>,
    waited: Duration,
}

/// One connection to the runtime.
pub(super) struct Session<'a> {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    settings: &'a Settings,
    snapshots: &'a watch::Receiver<Arc<Snapshot>>,
    health: &'a Health,
    patience: &'a mut Patience,
    /// How long the runtime waits for an answer, if it has said so.
    limit: Option<Duration>,
    is_configured: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        stream: UnixStream,
        settings: &'a Settings,
        snapshots: &'a watch::Receiver<Arc<Snapshot>>,
        health: &'a Health,
        patience: &'a mut Patience,
    ) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            reader,
            writer,
            settings,
            snapshots,
            health,
            patience,
            limit: None,
            is_configured: false,
        }
    }

    /// Registers the plugin and answers until the connection ends.
    pub(super) async fn run(mut self) -> Result<Infallible, SessionError> {
        self.register().await?;
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::with_capacity(CHUNK));
        let mut held = FuturesUnordered::new();
        let greeted_by = Instant::now() + self.settings.silence;
        loop {
            buffer.clear();
            buffer.reserve(CHUNK);
            let is_configured = self.is_configured;
            let too_late = async {
                if is_configured {
                    pending::<()>().await;
                }
                sleep_until(greeted_by).await;
            };
            tokio::select! {
                read = self.reader.read_buf(&mut buffer) => {
                    let read = read.map_err(|source| SessionError::Socket { what: "cannot read from the socket", source })?;
                    if read == 0 {
                        return Err(SessionError::Closed);
                    }
                }
                Some(released) = held.next(), if !held.is_empty() => {
                    self.health.holding(held.len());
                    self.release(released).await?;
                    continue;
                }
                () = too_late => return Err(SessionError::Silent { what: "configure the plugin" }),
            }
            for message in decoder.take(&buffer)? {
                let Some((call, answer, asked)) = self.answer(message)? else {
                    continue;
                };
                match answer {
                    Answer::Now(response) => self.respond(call, &response).await?,
                    Answer::Start(None) => {
                        self.health.started(Outcome::Unmanaged, Duration::ZERO);
                        self.respond(call, &Response::default()).await?;
                    }
                    Answer::Start(Some(starting)) => {
                        let limit = [self.limit, asked].into_iter().flatten().min();
                        let patience = self
                            .patience
                            .for_pod(&starting.uid, limit, Instant::now().into_std());
                        let is_full = held.len() >= MOST_HELD;
                        let patience = if is_full { Duration::ZERO } else { patience };
                        held.push(hold(self.snapshots.clone(), call, starting, patience));
                        self.health.holding(held.len());
                    }
                }
            }
        }
    }

    async fn register(&mut self) -> Result<(), SessionError> {
        let plugin = RegisterPlugin {
            plugin_name: NAME.into(),
            plugin_idx: INDEX.into(),
        };
        let request = Request {
            service: RUNTIME_SERVICE.into(),
            method: "RegisterPlugin".into(),
            payload: plugin.encode_to_vec().into(),
            timeout_nano: 0,
        };
        self.send(&Message {
            connection: RUNTIME,
            call: REGISTRATION,
            kind: REQUEST,
            payload: request.encode_to_vec().into(),
        })
        .await
    }

    /// What a message asks for, if anything: the number of the call, the answer, and how long the caller waits for it.
    fn answer(&mut self, message: Message) -> Result<Option<(u32, Answer, Option<Duration>)>, SessionError> {
        match (message.connection, message.kind) {
            (PLUGIN, REQUEST) => {
                let request: Request = read("a call", message.payload)?;
                let nanos = u64::try_from(request.timeout_nano)
                    .ok()
                    .filter(|nanos| *nanos > 0);
                let answer = self.asked(request)?;
                Ok(Some((message.call, answer, nanos.map(Duration::from_nanos))))
            }
            (RUNTIME, RESPONSE) if message.call == REGISTRATION => {
                let response: Response = read("the answer to the registration", message.payload)?;
                match response.status {
                    Some(RpcStatus { code, message }) if code != 0 => {
                        Err(SessionError::Refused { code, message })
                    }
                    _ => Ok(None),
                }
            }
            // Of no interest, such as streams.
            _ => Ok(None),
        }
    }

    fn asked(&mut self, request: Request) -> Result<Answer, SessionError> {
        let Request {
            service,
            method,
            payload,
            ..
        } = request;
        let method = if service == PLUGIN_SERVICE {
            method.as_str()
        } else {
            ""
        };
        Ok(match method {
            "Configure" => {
                let configure: Configure = read("its configuration", payload)?;
                self.configured(&configure);
                // One bit for each event, from the first one on.
                let events = 1 << (START_CONTAINER - 1);
                Answer::Now(saying(&Configured { events }))
            }
            "Synchronize" => {
                let Synchronize { more } = read("what runs already", payload)?;
                Answer::Now(saying(&Synchronized { more }))
            }
            "StartContainer" => {
                let StartContainer { pod, container } = read("a container that starts", payload)?;
                self.start(pod, container)
            }
            "StateChange" => match read::<StateChange>("an event", payload)? {
                StateChange {
                    event: START_CONTAINER,
                    pod,
                    container,
                } => self.start(pod, container),
                _ => Answer::Now(Response::default()),
            },
            "Shutdown" => Answer::Now(Response::default()),
            _ => Answer::Now(Response {
                status: Some(RpcStatus {
                    code: UNIMPLEMENTED,
                    message: "zt has no such method".into(),
                }),
                payload: Bytes::new(),
            }),
        })
    }

    fn configured(&mut self, configure: &Configure) {
        let limit = u64::try_from(configure.request_timeout)
            .ok()
            .filter(|limit| *limit > 0);
        self.limit = limit.map(Duration::from_millis);
        if !self.is_configured {
            self.is_configured = true;
            self.health.registered();
        }
        tracing::info!(
            runtime = configure.runtime_name,
            version = configure.runtime_version,
            wait_ms = self
                .patience
                .for_pod("", self.limit, Instant::now().into_std())
                .as_millis() as u64,
            "NRI: containers wait for their identity"
        );
    }

    fn start(&self, pod: Option<PodSandbox>, container: Option<Container>) -> Answer {
        Answer::Start(Starting::new(pod, container, &self.settings.roots))
    }

    /// Lets a container start that was held.
    async fn release(&mut self, released: Released) -> Result<(), SessionError> {
        let Released {
            call,
            starting,
            taken,
            waited,
        } = released;
        let outcome = match taken {
            Some(Taken::Named) if waited.is_zero() => Some(Outcome::Named),
            Some(Taken::Named) => Some(Outcome::Held),
            Some(Taken::LeftAlone) => Some(Outcome::LeftAlone),
            None => None,
        };
        if let Some(outcome) = outcome {
            self.patience.taken();
            self.health.started(outcome, waited);
        } else {
            self.patience
                .in_vain(&starting.uid, waited, Instant::now().into_std());
            self.health.started(Outcome::Unnamed, waited);
            tracing::warn!(
                pod = starting.pod,
                container = starting.container,
                waited_ms = waited.as_millis() as u64,
                "NRI: a container starts before its pod has an identity: what it does is decided by unknownWorkload"
            );
        }
        self.respond(call, &Response::default()).await
    }

    async fn respond(&mut self, call: u32, response: &Response) -> Result<(), SessionError> {
        self.send(&Message {
            connection: PLUGIN,
            call,
            kind: RESPONSE,
            payload: response.encode_to_vec().into(),
        })
        .await
    }

    async fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        let bytes = encode(message);
        timeout(self.settings.silence, self.writer.write_all(&bytes))
            .await
            .map_err(|_| SessionError::Silent {
                what: "take an answer",
            })?
            .map_err(|source| SessionError::Socket {
                what: "cannot write to the socket",
                source,
            })
    }
}

/// Waits until the container's pod has a name in the kernel's map or needs none, or its patience has ended.
async fn hold(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    call: u32,
    starting: Starting,
    patience: Duration,
) -> Released {
    let at_once = starting.is_taken(&snapshots.borrow_and_update());
    let began = Instant::now();
    let mut taken = at_once;
    if taken.is_none() {
        let told = snapshots.wait_for(|snapshot| {
            taken = starting.is_taken(snapshot);
            taken.is_some()
        });
        // With the sender the agent ends: nobody will be named any more.
        let _ = timeout(patience, told).await;
    }
    let waited = if at_once.is_some() {
        Duration::ZERO
    } else {
        began.elapsed()
    };
    Released {
        call,
        starting,
        taken,
        waited,
    }
}

fn read<M: prost::Message + Default>(what: &'static str, payload: Bytes) -> Result<M, SessionError> {
    M::decode(payload).map_err(|source| SessionError::Unreadable { what, source })
}

fn saying(message: &impl prost::Message) -> Response {
    Response {
        status: None,
        payload: message.encode_to_vec().into(),
    }
}
