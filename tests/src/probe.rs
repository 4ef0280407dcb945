// SPDX-License-Identifier: Apache-2.0
//! A workload: a real process in a cgroup and a network namespace, told over a pipe what to do.

mod protocol;

pub use protocol::{ConnectOptions, Flood, How, ListenOptions, Operation, Outcomes, Reply};

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cgroup::Cgroup;
use crate::network::Host;
use crate::wait::slowness;

/// How long an operation may take where its own timeout says nothing.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// What an answer may take beyond the operation's own timeout before the probe counts as hung.
const GRACE: Duration = Duration::from_secs(20);

/// A handle on a socket (or listener, group, child…) that a probe keeps.
pub type Handle = u32;

/// A running `zt-probe`. It ends when this is dropped, and by itself when the test process dies.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    stdin: Option<ChildStdin>,
    replies: Receiver<String>,
    /// How long each operation that was sent and not yet answered may still take.
    pending: VecDeque<Duration>,
}

impl Probe {
    /// Starts one. The process enters the cgroup and then the namespace before it does anything else.
    pub fn start(cgroup: &Cgroup, host: Option<&Host>) -> Result<Self> {
        Self::start_as(&binary()?, cgroup, host)
    }

    /// Starts a copy of the program, whose path is what an attestor goes by.
    pub fn start_as(program: &Path, cgroup: &Cgroup, host: Option<&Host>) -> Result<Self> {
        let namespace = host.map(Host::namespace_file);
        let mut command = Command::new(program);
        command.arg("--cgroup").arg(cgroup.path());
        if let Some(namespace) = namespace {
            command.arg("--netns").arg(namespace);
        }
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start zt-probe")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("zt-probe has no standard output")?;
        let (sender, replies) = channel();
        thread::spawn(move || {
            // Ends when the probe does; a reply that nobody waits for is dropped.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut probe = Self {
            child,
            stdin,
            replies,
            pending: VecDeque::new(),
        };
        probe
            .call(Operation::Hello)?
            .ok()
            .context("zt-probe did not start")?;
        Ok(probe)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does one operation and returns its reply; an `errno` is a reply, not an error.
    pub fn call(&mut self, operation: Operation) -> Result<Reply> {
        self.send(operation)?;
        self.wait()
    }

    /// Starts an operation; [`Self::wait`] returns its reply. Replies come in the order of the operations.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "operations are made where they are used"
    )]
    pub fn send(&mut self, operation: Operation) -> Result<()> {
        self.pending.push_back(operation.timeout() + GRACE * slowness());
        let mut line = serde_json::to_vec(&operation)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut().context("the probe has ended")?;
        stdin.write_all(&line).context("the probe has died")
    }

    /// The reply to the oldest operation that has none yet.
    pub fn wait(&mut self) -> Result<Reply> {
        let patience = self.pending.pop_front().context("no operation is under way")?;
        match self.replies.recv_timeout(patience) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("the probe said: {line}")),
            Err(RecvTimeoutError::Timeout) => bail!("the probe did not answer within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the probe has died"),
        }
    }

    /// `connect`, with the usual timeout. The reply has the socket's handle.
    pub fn connect(&mut self, to: SocketAddr) -> Result<Reply> {
        self.connect_with(to, ConnectOptions::default())
    }

    /// `connect` with a source address, a device, MPTCP…
    pub fn connect_with(&mut self, to: SocketAddr, options: ConnectOptions) -> Result<Reply> {
        self.call(Operation::TcpConnect { to, options })
    }

    /// Listens; the reply has the listener's handle and, as `local`, its address. Port 0 takes a free one.
    pub fn listen(&mut self, at: SocketAddr) -> Result<Reply> {
        self.call(Operation::TcpListen {
            at,
            options: ListenOptions::default(),
        })
    }

    /// Listens and echoes in the background; the reply's `local` is its address.
    pub fn serve(&mut self, at: SocketAddr) -> Result<Reply> {
        self.call(Operation::Serve {
            at,
            options: ListenOptions::default(),
        })
    }

    /// Takes the next connection of a listener.
    pub fn accept(&mut self, listener: Handle) -> Result<Reply> {
        self.call(Operation::Accept {
            socket: listener,
            timeout: TIMEOUT,
        })
    }

    /// Sends text on a connected socket.
    pub fn send_text(&mut self, socket: Handle, text: &str) -> Result<Reply> {
        self.call(Operation::Send {
            socket,
            data: text.to_owned(),
            repeat: 1,
            timeout: TIMEOUT,
        })
    }

    /// Receives once from a connected socket; the reply's `data` is empty at the end of the stream.
    pub fn receive(&mut self, socket: Handle) -> Result<Reply> {
        self.call(Operation::Recv {
            socket,
            max: 65_536,
            timeout: TIMEOUT,
        })
    }

    /// Binds a UDP socket.
    pub fn udp_bind(&mut self, at: SocketAddr) -> Result<Reply> {
        self.call(Operation::UdpBind {
            at,
            options: ListenOptions::default(),
        })
    }

    /// Closes a socket or whatever else the handle stands for.
    pub fn close(&mut self, socket: Handle) -> Result<Reply> {
        self.call(Operation::Close { socket })
    }

    /// Closes a TCP connection with a reset.
    pub fn reset(&mut self, socket: Handle) -> Result<Reply> {
        self.call(Operation::Reset { socket })
    }

    /// Moves the process to another cgroup.
    pub fn move_to(&mut self, cgroup: &Cgroup) -> Result<Reply> {
        self.call(Operation::MoveTo {
            cgroup: cgroup.path().to_owned(),
        })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It may be in the middle of a long operation; a test that is over has no more use for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `zt-probe` that was built together with the running test.
pub fn binary() -> Result<PathBuf> {
    built_binary("zt-probe", "cargo build -p zt-tests")
}

/// A binary of this workspace, in the profile of the running test.
pub fn built_binary(name: &str, command: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    // Tests are in target/<profile>/deps, and so may be the caller.
    let directories = test.ancestors().skip(1).take(2).map(Path::to_owned);
    let mut candidates = directories.map(|directory| directory.join(name));
    candidates
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built next to {}: run `{command}`", test.display()))
}
