// SPDX-License-Identifier: Apache-2.0
//! What an engine knows and may tell nobody, at the level at which it logs most: the password of its database, and the key of its
//! certificate.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zt_agent::cli::client::{ApiArgs, Client, TlsArgs};

use super::tls::{Authority, ENGINE, configure};
use super::world::{Engine, Shared, client, eventually};

const PASSWORD: &str = "seven herons@dusk";
/// As it is in a URL.
const ENCODED: &str = "seven%20herons%40dusk";
/// Of the logins that read and that look after the tables.
const OTHERS: [(&str, &str); 2] = [
    ("nine otters@dawn", "nine%20otters%40dawn"),
    ("four badgers@noon", "four%20badgers%40noon"),
];
const OPERATOR: &str = "spiffe://hanzo.ai/ops/reader";
/// Bytes of a secret that are enough to say that it is one.
const PART: usize = 12;

/// Something secret, in all the ways in which it may be written.
struct Secret {
    name: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn of_bytes(name: &'static str, bytes: &[u8]) -> Self {
        let part = &bytes[..PART.min(bytes.len())];
        let joined = |between: &str, form: fn(&u8) -> String| {
            let all: Vec<String> = part.iter().map(form).collect();
            all.join(between).into_bytes()
        };
        let forms = vec![
            part.to_vec(),
            joined("", |byte| format!("{byte:02x}")),
            joined("", |byte| format!("{byte:02X}")),
            joined(":", |byte| format!("{byte:02x}")),
            // As `Debug` writes bytes.
            joined(", ", u8::to_string),
        ];
        Self { name, forms }
    }

    fn with(mut self, text: &str) -> Self {
        self.forms.push(text.as_bytes().to_vec());
        self
    }

    /// Where it is said.
    fn found_in<'a>(&self, said: &'a [(String, Vec<u8>)]) -> Option<&'a str> {
        let holds = |bytes: &[u8]| {
            let is_in = |form: &Vec<u8>| bytes.windows(form.len()).any(|window| window == form.as_slice());
            self.forms.iter().any(is_in)
        };
        said.iter()
            .find(|(_, bytes)| holds(bytes))
            .map(|(place, _)| place.as_str())
    }
}

/// A database server that asks for the password in the clear, and then lets nobody in: what it was told.
async fn server() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
    let address = listener.local_addr().expect("address");
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heard = Arc::clone(&heard);
            tokio::spawn(async move {
                if let Some(password) = ask(stream).await {
                    heard.lock().expect("not poisoned").push(password);
                }
            });
        }
    });
    (address, told)
}

/// One connection, up to its refusal (PostgreSQL's protocol, version 3).
async fn ask(mut stream: TcpStream) -> Option<String> {
    const TLS_REQUEST: u32 = 80_877_103;
    loop {
        let mut body = vec![0; (stream.read_u32().await.ok()? as usize).checked_sub(4)?];
        stream.read_exact(&mut body).await.ok()?;
        if body != TLS_REQUEST.to_be_bytes() {
            break;
        }
        stream.write_all(b"N").await.ok()?;
    }
    // AuthenticationCleartextPassword.
    stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.ok()?;
    let kind = stream.read_u8().await.ok()?;
    let mut body = vec![0; (stream.read_u32().await.ok()? as usize).checked_sub(4)?];
    stream.read_exact(&mut body).await.ok()?;
    let fields = b"SFATAL\0VFATAL\0C28P01\0Mnobody is let in\0\0";
    stream.write_u8(b'E').await.ok()?;
    stream.write_u32(fields.len() as u32 + 4).await.ok()?;
    stream.write_all(fields).await.ok()?;
    (kind == b'p').then(|| String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned())
}

/// Everything that the engine says to those who ask, in its log and its files, and what the tools of the operator say of it.
async fn all_that_is_said(engine: &Engine, remote: &Client) -> Vec<(String, Vec<u8>)> {
    let mut said = Vec::new();
    for (way, client) in [("TLS", remote), ("socket", &engine.client_on_socket())] {
        for path in [
            "/v1/status",
            "/v1/identities",
            "/v1/policies",
            "/v1/audit",
            "/v1/rollout",
            "/openapi.json",
        ] {
            // Where nothing can be answered, the refusal is what is said.
            let answer = match client.get(path, &[]).await {
                Ok(answer) => answer.to_string(),
                Err(error) => format!("{error:?}"),
            };
            said.push((format!("{path} over {way}"), answer.into_bytes()));
        }
    }
    let health = client(&format!("http://{}", engine.health));
    for path in ["/metrics", "/readyz"] {
        let text = health
            .text(path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        said.push((path.to_owned(), text.into_bytes()));
    }
    for (name, more) in [("doctor", vec![]), ("sysdump", vec!["--output-file", "-"])] {
        let output = engine.command_of(name).args(more).output().expect("it runs");
        assert!(
            !output.stdout.is_empty(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        said.push((format!("what {name} says"), output.stderr));
        match name {
            "sysdump" => unpack(&output.stdout, &mut said),
            _ => said.push((name.to_owned(), output.stdout)),
        }
    }
    files(engine.home(), &mut said);
    said
}

fn unpack(archive: &[u8], said: &mut Vec<(String, Vec<u8>)>) {
    let before = said.len();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let name = format!("the sysdump's {}", entry.path().expect("a path").display());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("it can be read");
        said.push((name, bytes));
    }
    assert!(said.len() > before + 5, "the sysdump has next to nothing");
}

fn files(directory: &Path, said: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files(&path, said);
        } else if path.is_file() {
            said.push((path.display().to_string(), fs::read(&path).expect("readable")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_password_nor_a_key_is_said_at_any_level() {
    let shared = Shared::new();
    let authority = Authority::new(shared.below("authority"));
    let shown = authority.issue(ENGINE, "localhost");
    let callers = format!("{{spiffe: \"{OPERATOR}\", role: admin}}");
    configure(&shared, "e1", &shown, &authority.ca(), &callers);
    let (database, told) = server().await;
    let dsn = format!("postgres://zt:{ENCODED}@{database}/trail");
    let [read, maintain] = OTHERS.map(|(_, encoded)| format!("postgres://other:{encoded}@{database}/trail"));
    let environment = [
        ("ZT_AUDIT_DSN", dsn.as_str()),
        ("ZT_AUDIT_READ_DSN", read.as_str()),
        ("ZT_AUDIT_MAINTAIN_DSN", maintain.as_str()),
        ("ZT_LOG", "trace"),
    ];
    let engine = shared.engine_with("e1", &environment).await;

    // All are used: the certificate is shown, and the passwords have come to the server.
    let (cert, key) = authority.issue(OPERATOR, "operator");
    let remote = Client::new(&ApiArgs {
        api: format!("https://localhost:{}", engine.api.port()),
        tls: TlsArgs {
            tls_cert: Some(cert),
            tls_key: Some(key),
            tls_ca: Some(authority.ca()),
        },
    })
    .expect("usable");
    remote.get("/v1/status", &[]).await.expect("it is served");
    eventually("the passwords to come to the server", || async {
        // Who reads connects when somebody asks, and is let in as little as the others.
        let asked = remote.get("/v1/audit", &[]).await;
        assert!(asked.is_err(), "{asked:?}");
        let told = told.lock().expect("not poisoned");
        let others = OTHERS.map(|(password, _)| password);
        let mut all = std::iter::once(PASSWORD).chain(others);
        all.all(|password| told.iter().any(|heard| heard == password))
            .then_some(())
    })
    .await;
    // As an operator would look for what is wrong.
    eventually("the refusal to be logged", || async {
        engine.log().contains("nobody is let in").then_some(())
    })
    .await;

    let said = all_that_is_said(&engine, &remote).await;
    assert!(
        engine.log().contains("\"level\":\"TRACE\""),
        "the log is not at its most talkative"
    );
    let pem = fs::read_to_string(&shown.1).expect("the key");
    let body: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    // PKCS #8 of a key on P-256: the number itself begins at the 36th byte.
    let der = rcgen::KeyPair::from_pem(&pem).expect("a key").serialize_der();
    let mut key = Secret::of_bytes("the key", &der[36..]);
    for line in body {
        key = key.with(line);
    }
    let password = Secret::of_bytes("the password", PASSWORD.as_bytes())
        .with(PASSWORD)
        .with(ENCODED)
        // In base64, whatever stands before it.
        .with("c2V2ZW4gaGVyb25z")
        .with("ZXZlbiBoZXJvbnNAZHVz")
        .with("ldmVuIGhlcm9uc0BkdXNr");
    let others = OTHERS.map(|(password, encoded)| {
        Secret::of_bytes("another password", password.as_bytes())
            .with(password)
            .with(encoded)
    });
    for secret in [key, password].into_iter().chain(others) {
        assert_eq!(secret.found_in(&said), None, "{} is said", secret.name);
    }
    // Whoever looks finds what is there: where the database is, which is no secret, and the public part of the key.
    let place = Secret::of_bytes("the place", database.to_string().as_bytes());
    let found = place.found_in(&said).expect("the database is told of");
    assert!(found.contains("/v1/status") || found.ends_with("/log"), "{found}");
}
