// SPDX-License-Identifier: Apache-2.0
//! A fake container runtime: it speaks the real protocol, and fails as it is told.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{ID, ROOT};
use crate::nri::messages::{
    Configure, Configured, Container, LinuxPodSandbox, PLUGIN_SERVICE, PodSandbox, RUNTIME_SERVICE,
    RegisterPlugin, Request, Response, RpcStatus, StartContainer,
};
use crate::nri::wire::{Decoder, Message, PLUGIN, REQUEST, RESPONSE, RUNTIME, encode};
use crate::nri::{Health, OUTCOMES, Settings, Status, follow};
use crate::state::Snapshot;

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(60);

/// The plugin at work, and the socket that it tries.
pub(super) struct World {
    pub(super) health: Arc<Health>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    listener: UnixListener,
    plugin: JoinHandle<Infallible>,
    _directory: tempfile::TempDir,
}

impl World {
    /// One whose containers wait so long at the most.
    pub(super) fn new(wait: Duration) -> Self {
        Self::with(wait, Duration::from_secs(30))
    }

    /// One that bears silence no longer than that.
    pub(super) fn with(wait: Duration, silence: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("nri.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let mut settings = Settings::new(socket, wait, vec![PathBuf::from(ROOT)]);
        settings.silence = silence;
        settings.pauses = (Duration::from_millis(1), Duration::from_millis(20));
        let health = Arc::new(Health::default());
        let (snapshots, told) = watch::channel(Arc::new(Snapshot::default()));
        let plugin = tokio::spawn(follow(settings, told, Arc::clone(&health)));
        Self {
            health,
            snapshots,
            listener,
            plugin,
            _directory: directory,
        }
    }

    /// The next connection of the plugin.
    pub(super) async fn accept(&self) -> Runtime {
        let accepted = timeout(LATER, self.listener.accept()).await;
        let (stream, _) = accepted.expect("the plugin comes").expect("a connection");
        Runtime {
            stream,
            decoder: Decoder::default(),
            queue: Vec::new(),
            next: 1,
        }
    }

    /// The next connection, as far as real runtimes take it before they start containers.
    pub(super) async fn runtime(&self, request_timeout: i64) -> Runtime {
        let mut runtime = self.accept().await;
        runtime.register(None).await;
        runtime.configure(request_timeout).await;
        runtime
    }

    /// Waits until the account is so.
    pub(super) async fn wait(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let looked = async {
            loop {
                let status = self.health.status();
                if holds(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let found = timeout(LATER, looked).await;
        found.unwrap_or_else(|_| panic!("{what}: {:?}", self.health.status()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.plugin.abort();
    }
}

/// How many containers started so.
pub(super) fn count(status: &Status, outcome: &str) -> u64 {
    let slot = OUTCOMES.iter().position(|(_, name)| *name == outcome);
    status.starts[slot.expect("an outcome")]
}

/// The runtime's end of a connection.
pub(super) struct Runtime {
    pub(super) stream: UnixStream,
    decoder: Decoder,
    queue: Vec<Message>,
    next: u32,
}

impl Runtime {
    /// Takes the plugin's registration, and refuses it where there is a reason.
    pub(super) async fn register(&mut self, refusal: Option<RpcStatus>) {
        let message = self.receive().await;
        assert_eq!((message.connection, message.kind), (RUNTIME, REQUEST));
        let request = Request::decode(message.payload).expect("a call");
        assert_eq!(
            (request.service.as_str(), request.method.as_str()),
            (RUNTIME_SERVICE, "RegisterPlugin")
        );
        let plugin = RegisterPlugin::decode(request.payload).expect("a registration");
        assert_eq!(
            (plugin.plugin_name.as_str(), plugin.plugin_idx.as_str()),
            ("zt", "90")
        );
        let response = Response {
            status: refusal,
            ..Response::default()
        };
        let bytes = encode(&Message {
            connection: RUNTIME,
            call: message.call,
            kind: RESPONSE,
            payload: response.encode_to_vec().into(),
        });
        self.send(&bytes).await;
    }

    /// Configures the plugin, which wants to hear of starts and of nothing else.
    pub(super) async fn configure(&mut self, request_timeout: i64) {
        let configure = Configure {
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            request_timeout,
        };
        let call = self.call("Configure", &configure, 0).await;
        let (answered, response) = self.answer().await;
        assert_eq!((answered, &response.status), (call, &None));
        let configured = Configured::decode(response.payload).expect("an answer");
        assert_eq!(configured.events, 0b10_0000);
    }

    /// Asks the plugin; the number of the call.
    pub(super) async fn call(
        &mut self,
        method: &str,
        message: &impl prost::Message,
        timeout_nano: i64,
    ) -> u32 {
        let call = self.next;
        let bytes = self.bytes(method, message, timeout_nano);
        self.send(&bytes).await;
        call
    }

    /// The bytes of a call.
    pub(super) fn bytes(
        &mut self,
        method: &str,
        message: &impl prost::Message,
        timeout_nano: i64,
    ) -> Vec<u8> {
        let request = Request {
            service: PLUGIN_SERVICE.into(),
            method: method.into(),
            payload: message.encode_to_vec().into(),
            timeout_nano,
        };
        let call = self.next;
        self.next += 2;
        encode(&Message {
            connection: PLUGIN,
            call,
            kind: REQUEST,
            payload: request.encode_to_vec().into(),
        })
    }

    /// A container of the pod is about to start.
    pub(super) async fn start(&mut self, uid: &str) -> u32 {
        self.call("StartContainer", &start(uid), 0).await
    }

    /// The next answer.
    pub(super) async fn answer(&mut self) -> (u32, Response) {
        let message = self.receive().await;
        assert_eq!((message.connection, message.kind), (PLUGIN, RESPONSE));
        (
            message.call,
            Response::decode(message.payload).expect("an answer"),
        )
    }

    /// The answer to this call is the next one, and says that all is well.
    pub(super) async fn answers(&mut self, call: u32) {
        let (answered, response) = self.answer().await;
        assert_eq!((answered, response.status), (call, None));
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the plugin listens");
    }

    /// Waits until the plugin has hung up.
    pub(super) async fn leaves(mut self) {
        let mut rest = Vec::new();
        // A reset is an end as well: what was sent may be unread.
        let _ = timeout(LATER, self.stream.read_to_end(&mut rest))
            .await
            .expect("the plugin hangs up");
    }

    async fn receive(&mut self) -> Message {
        let mut buffer = [0; 4096];
        while self.queue.is_empty() {
            let read = timeout(LATER, self.stream.read(&mut buffer)).await;
            let read = read.expect("the plugin says something").expect("readable");
            assert_ne!(read, 0, "the plugin hung up");
            self.queue = self.decoder.take(&buffer[..read]).expect("well-formed");
        }
        self.queue.remove(0)
    }
}

/// What a runtime says of a container of this pod.
pub(super) fn start(uid: &str) -> StartContainer {
    let parent = Path::new("/").join(ROOT).join(format!("pod{uid}"));
    StartContainer {
        pod: Some(PodSandbox {
            name: "client".into(),
            uid: uid.into(),
            namespace: "shop".into(),
            linux: Some(LinuxPodSandbox {
                cgroup_parent: parent.display().to_string(),
            }),
        }),
        container: Some(Container {
            id: ID.into(),
            name: "app".into(),
        }),
    }
}
