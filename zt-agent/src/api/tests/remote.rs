// SPDX-License-Identifier: Apache-2.0
//! Callers from elsewhere: certificates, roles, what is refused and how it is counted.

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::*;
use crate::caller::{CallerRule, Role};
use crate::spiffe_id::Pattern;
use crate::tls::tests::{Authority, Issued, files};

/// A world whose API is also served over TLS.
pub(super) struct Remote {
    pub(super) world: World,
    pub(super) address: SocketAddr,
    pub(super) authority: Authority,
    pub(super) certificates: TempDir,
    pub(super) configured: watch::Sender<Arc<Configured>>,
}

pub(super) fn rule(pattern: &str, role: Role) -> CallerRule {
    CallerRule {
        spiffe: Pattern::parse(pattern).expect("pattern"),
        role,
        node: None,
    }
}

pub(super) async fn remote() -> Remote {
    remote_with(Limits::default()).await
}

/// The same with other limits.
pub(super) async fn remote_with(limits: Limits) -> Remote {
    let world = world().await;
    let authority = Authority::new();
    let certificates = tempfile::tempdir().expect("tempdir");
    let files = files(certificates.path());
    authority
        .issue(&["spiffe://hanzo.ai/zt"])
        .write(certificates.path());
    std::fs::write(&files.client_ca, authority.pem()).expect("write");
    let (reloader, config) = crate::tls::Reloader::start(files).expect("usable");
    tokio::spawn(reloader.run());
    let configured = Configured {
        callers: Arc::from([
            rule("spiffe://hanzo.ai/app/*", Role::Evaluate),
            rule("spiffe://hanzo.ai/audit/reader", Role::Read),
            rule("spiffe://hanzo.ai/ops/*", Role::Admin),
            rule("spiffe://hanzo.ai/nodes/*", Role::Follow),
        ]),
        ..Configured::default()
    };
    let (configured, callers) = watch::channel(Arc::new(configured));
    let tls = Tls {
        config,
        callers,
        metrics: Arc::clone(&world.state.metrics),
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = bind_api(any, Some(tls)).await.expect("binds");
    let endpoint = endpoint.with_limits(limits);
    let address = endpoint.address().expect("TCP");
    let guard = Arc::new(Guard::new(NonZeroU32::MAX, Arc::clone(&world.state.metrics)));
    tokio::spawn(endpoint.serve(
        router(world.state.clone()),
        Some(guard),
        world.stopping.subscribe(),
    ));
    Remote {
        world,
        address,
        authority,
        certificates,
        configured,
    }
}

impl Remote {
    /// What is answered to a caller with that certificate; an error where there is none.
    pub(super) async fn ask(
        &self,
        trusts: &Authority,
        shows: Option<&Issued>,
        request: &str,
    ) -> Result<Reply, std::io::Error> {
        let connector = TlsConnector::from(Arc::new(trusts.client(shows)));
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("name");
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("head");
        Ok(Reply {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .expect("status"),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        })
    }

    pub(super) async fn ask_as(&self, id: &str, method: &str, path: &str, body: &str) -> Reply {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: zt.example\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let shown = self.authority.issue(&[id]);
        self.ask(&self.authority, Some(&shown), &request)
            .await
            .expect("answered")
    }

    pub(super) async fn refused(&self, cause: &str) -> bool {
        let line = format!("zt_api_refused_total{{cause=\"{cause}\"}} 1");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            if get(self.world.health, "/metrics").await.body.contains(&line) {
                return true;
            }
            if tokio::time::Instant::now() > deadline {
                return false;
            }
        }
    }
}

pub(super) const GET: &str = "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_role_opens_what_it_is_for() {
    let remote = remote().await;
    let ask = question(IAM, POSTGRES, 5432).to_string();
    let (app, reader, ops) = (
        "spiffe://hanzo.ai/app/web",
        "spiffe://hanzo.ai/audit/reader",
        "spiffe://hanzo.ai/ops/alice",
    );
    assert_eq!(remote.ask_as(app, "POST", "/v1/evaluate", &ask).await.status, 200);
    assert_eq!(
        remote.ask_as(app, "GET", "/v1/audit", "").await.code(),
        "role_insufficient"
    );
    assert_eq!(remote.ask_as(reader, "GET", "/v1/policies", "").await.status, 200);
    assert_eq!(
        remote.ask_as(reader, "PUT", "/v1/policies/x", "{}").await.code(),
        "role_insufficient"
    );
    assert_eq!(
        remote.ask_as(ops, "PUT", "/v1/policies/x", "{}").await.code(),
        "invalid_policy"
    );
    let stranger = remote
        .ask_as("spiffe://hanzo.ai/elsewhere", "POST", "/v1/evaluate", &ask)
        .await;
    assert_eq!(
        (stranger.status, stranger.code().as_str()),
        (403, "caller_unknown")
    );
    assert!(remote.refused("not_a_caller").await);
    // Records bear the name that the certificate proved.
    remote.world.intake.flush().await.expect("flushes");
    let records = remote.ask_as(reader, "GET", "/v1/audit", "").await.json();
    assert_eq!(records["records"].as_array().map(Vec::len), Some(1));
    assert_eq!(records["records"][0]["caller"], json!(app));
}

#[tokio::test]
async fn a_node_that_follows_reads_policy_and_speaks_for_itself_alone() {
    let remote = remote().await;
    let node = "spiffe://hanzo.ai/nodes/worker-1";
    let report = json!({"revision": 1, "digest": "a".repeat(64)}).to_string();
    assert_eq!(remote.ask_as(node, "GET", "/v1/policies", "").await.status, 200);
    for (method, path, body) in [
        ("GET", "/v1/status", ""),
        ("GET", "/v1/audit", ""),
        ("GET", "/v1/policies/hanzo-core-policy", ""),
        ("GET", "/v1/decisions/stream", ""),
        (
            "POST",
            "/v1/evaluate",
            &*question(IAM, POSTGRES, 5432).to_string(),
        ),
        ("PUT", "/v1/policies/x", "{}"),
        ("POST", "/v1/mode", "{}"),
        ("POST", "/v1/rollout", "{}"),
        ("POST", "/v1/replay", "{}"),
    ] {
        let reply = remote.ask_as(node, method, path, body).await;
        assert_eq!(reply.code(), "role_insufficient", "{method} {path}");
    }
    let told = remote.ask_as(node, "PUT", "/v1/nodes/worker-1", &report).await;
    assert_eq!(told.status, 204, "{}", told.body);
    for (id, other, code) in [
        (node, "worker-2", "not_that_node"),
        (node, "worker-1%20", "not_that_node"),
        ("spiffe://hanzo.ai/audit/reader", "reader", "role_insufficient"),
        ("spiffe://hanzo.ai/app/worker-1", "worker-1", "role_insufficient"),
    ] {
        let told = remote
            .ask_as(id, "PUT", &format!("/v1/nodes/{other}"), &report)
            .await;
        assert_eq!(
            (told.status, told.code().as_str()),
            (403, code),
            "{id} as {other}"
        );
    }
    let status = remote
        .ask_as("spiffe://hanzo.ai/audit/reader", "GET", "/v1/status", "")
        .await
        .json();
    let nodes = status["nodes"].as_array().expect("list");
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    assert_eq!(
        (&nodes[0]["node"], &nodes[0]["caller"]),
        (&json!("worker-1"), &json!(node))
    );
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_and_certificates_change_under_way() {
    let remote = remote().await;
    let shown = remote.authority.issue(&["spiffe://hanzo.ai/ops/alice"]);
    let connector = TlsConnector::from(Arc::new(remote.authority.client(Some(&shown))));
    let connect = async || {
        let stream = TcpStream::connect(remote.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("name");
        connector.connect(name, stream).await.expect("shakes hands")
    };
    let (mut open, mut another) = (connect().await, connect().await);
    // A stream has no end of its own.
    let stream = "GET /v1/decisions/stream HTTP/1.1\r\nHost: x\r\n\r\n";
    another.write_all(stream.as_bytes()).await.expect("written");
    let mut first = [0; 12];
    another.read_exact(&mut first).await.expect("answered");
    assert_eq!(&first, b"HTTP/1.1 200");
    let group = open.get_ref().1.negotiated_key_exchange_group().expect("group");
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);

    let next = Authority::new();
    let client_ca = files(remote.certificates.path()).client_ca;
    let both = format!("{}{}", remote.authority.pem(), next.pem());
    std::fs::write(&client_ca, both).expect("write");
    next.issue(&["spiffe://hanzo.ai/zt"])
        .write(remote.certificates.path());
    let newcomer = next.issue(&["spiffe://hanzo.ai/ops/bob"]);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let answer = loop {
        match remote.ask(&next, Some(&newcomer), GET).await {
            Ok(answer) => break answer,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
    };
    assert_eq!(answer.status, 200);
    // Who was here before goes on, and may come again.
    open.write_all(GET.as_bytes()).await.expect("written");
    let mut text = String::new();
    open.read_to_string(&mut text).await.expect("answered");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(remote.ask(&next, Some(&shown), GET).await.is_ok());
    std::fs::write(&client_ca, next.pem()).expect("write");
    // An end without a farewell is an error: who is cut off is told nothing.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), another.read_to_end(&mut rest));
    assert!(
        ended.await.is_ok(),
        "the issuer of its certificate is not trusted any more"
    );
    assert!(
        remote.ask(&next, Some(&shown), GET).await.is_err(),
        "the old authority is out"
    );
}

#[tokio::test]
async fn the_command_line_comes_this_way_too() {
    let remote = remote().await;
    let directory = tempfile::tempdir().expect("tempdir");
    let own = files(directory.path());
    remote
        .authority
        .issue(&["spiffe://hanzo.ai/ops/alice"])
        .write(directory.path());
    std::fs::write(&own.client_ca, remote.authority.pem()).expect("write");
    let client = |ca: std::path::PathBuf| {
        let arguments = crate::cli::client::ApiArgs {
            api: format!("https://localhost:{}", remote.address.port()),
            tls: crate::cli::client::TlsArgs {
                tls_cert: Some(own.cert.clone()),
                tls_key: Some(own.key.clone()),
                tls_ca: Some(ca),
            },
        };
        crate::cli::client::Client::new(&arguments).expect("usable")
    };
    let status = client(own.client_ca.clone())
        .get("/v1/status", &[])
        .await
        .expect("answered");
    assert_eq!(status["cluster"], json!("hanzo-k8s"));
    let other = directory.path().join("other.pem");
    std::fs::write(&other, Authority::new().pem()).expect("write");
    let error = client(other)
        .get("/v1/status", &[])
        .await
        .expect_err("another authority");
    assert!(error.to_string().contains("certificate"), "{error}");

    let socket = remote.world.directory.path().join("agent.sock");
    let endpoint = bind_socket(&socket).await.expect("binds");
    tokio::spawn(endpoint.serve(
        router(remote.world.state.clone()),
        None,
        remote.world.stopping.subscribe(),
    ));
    let arguments = crate::cli::client::ApiArgs {
        api: format!("unix://{}", socket.display()),
        ..Default::default()
    };
    let client = crate::cli::client::Client::new(&arguments).expect("usable");
    assert!(client.get("/v1/status", &[]).await.is_ok());
}

#[tokio::test]
async fn streams_end_with_the_certificate_of_who_listens() {
    let remote = remote().await;
    let id = "spiffe://hanzo.ai/audit/reader";
    let (brief, long) = (
        remote.authority.issue_for(&[id], Duration::from_secs(4)),
        remote.authority.issue(&[id]),
    );
    let mut open = Vec::new();
    for (shown, path) in [
        (&brief, "/v1/decisions/stream"),
        (&brief, "/v1/revisions/stream"),
        (&long, "/v1/decisions/stream"),
    ] {
        let connector = TlsConnector::from(Arc::new(remote.authority.client(Some(shown))));
        let stream = TcpStream::connect(remote.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("name");
        let mut stream = connector.connect(name, stream).await.expect("shakes hands");
        // What is asked when the stream has ended is asked with a certificate that has expired.
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n{GET}");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("answered");
        assert_eq!(&head, b"HTTP/1.1 200", "{path}");
        open.push(stream);
    }
    let mut lasting = open.pop().expect("three");
    for mut stream in open {
        let mut rest = String::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut rest));
        ended.await.expect("ends").expect("in order");
        assert!(rest.contains("0\r\n\r\n"), "the stream is whole: {rest}");
        assert!(
            rest.contains("certificate_expired"),
            "and nothing more is served: {rest}"
        );
    }
    // Who has a good one goes on listening.
    let ask = question(IAM, POSTGRES, 5432).to_string();
    assert_eq!(post(remote.world.api, "/v1/evaluate", &ask).await.status, 200);
    let mut seen = String::new();
    while !seen.contains("\"port\":5432,") {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(30), lasting.read(&mut buffer));
        let count = read.await.expect("comes").expect("reads");
        assert_ne!(count, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}
