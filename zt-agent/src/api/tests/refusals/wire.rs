// SPDX-License-Identifier: Apache-2.0
//! Requests that are wrong on the wire, or made to cost more than they should: each gets its status and its code, and
//! nothing is decided, changed or recorded.

use super::bodies::state;
use super::*;
use crate::api::server::{HEAD_BYTES, HEAD_FIELDS};

const JSON: &str = "Content-Type: application/json\r\n";
const YAML_TYPE: &str = "Content-Type: application/yaml\r\n";

/// A head and what comes after it, as bytes.
fn request(first: &str, headers: &str, rest: &[u8]) -> Vec<u8> {
    let head = format!("{first} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), rest].concat()
}

/// How long an answer is waited for before no more is sent.
const QUIET: Duration = Duration::from_secs(3);

/// Sends bytes and then nothing more; the status, and the code where the answer is a problem.
async fn cut(to: SocketAddr, bytes: &[u8]) -> (u16, Option<String>) {
    let stream = TcpStream::connect(to).await.expect("connects");
    let (mut reading, mut writing) = stream.into_split();
    let (told, first) = tokio::sync::oneshot::channel();
    let sending = async {
        // The server may answer and close before it has read all.
        let _ = writing.write_all(bytes).await;
        // Whoever hangs up is not answered any more; whoever waits for more than there is hears from that that there is none.
        let _ = tokio::time::timeout(QUIET, first).await;
        let _ = writing.shutdown().await;
    };
    let mut answer = Vec::new();
    let receiving = async {
        let mut told = Some(told);
        while reading.read_buf(&mut answer).await.is_ok_and(|length| length > 0) {
            if let Some(told) = told.take() {
                let _ = told.send(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        tokio::join!(sending, receiving)
    })
    .await
    .expect("answered");
    let text = String::from_utf8(answer).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let code = serde_json::from_str::<Value>(body).ok();
    let code = code.and_then(|body| Some(body["code"].as_str()?.to_owned()));
    (status.unwrap_or(0), code)
}

/// A body in chunks of these sizes, as they are written.
fn chunk(size: &str, data: &[u8]) -> Vec<u8> {
    [size.as_bytes(), b"\r\n", data, b"\r\n"].concat()
}

/// What is sent, its status, and the code of the problem that is told.
type Case = (&'static str, Vec<u8>, u16, Option<&'static str>);

const EVALUATE: &str = "POST /v1/evaluate";

fn case(what: &'static str, bytes: Vec<u8>, status: u16, code: &'static str) -> Case {
    (what, bytes, status, (!code.is_empty()).then_some(code))
}

fn with_length(media_type: &str, length: usize) -> String {
    format!("{media_type}Content-Length: {length}\r\n")
}

fn whole(first: &str, media_type: &str, body: &[u8]) -> Vec<u8> {
    request(first, &with_length(media_type, body.len()), body)
}

/// Heads: of most nobody can tell what was asked, so that there is nothing to tell about it.
fn heads() -> Vec<Case> {
    let long = "a".repeat(100_000);
    let longer = format!("X: {}\r\n", "a".repeat(1 << 20));
    let lengths = format!("{JSON}Content-Length: 2\r\nContent-Length: 1\r\n");
    let of_length = |length: &str| format!("{JSON}Content-Length: {length}\r\n");
    let path = b"GET /v1/policies/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    let host = b"GET /v1/status HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n".to_vec();
    let endless = request(&format!("GET /v1/policies/{long}"), "", b"");
    let query = request("GET /v1/audit?source=%ff", "", b"");
    let name = request("GET /v1/policies/%ff", "", b"");
    vec![
        case("no HTTP", b"NONSENSE\r\n\r\n".to_vec(), 400, ""),
        case("a path that is no text", path, 400, ""),
        case("an endless path", endless, 431, ""),
        case(
            "an endless header",
            request("GET /v1/status", &longer, b""),
            431,
            "",
        ),
        case("two lengths", request(EVALUATE, &lengths, b"{}"), 400, ""),
        case("no length", request(EVALUATE, &of_length("x"), b"{}"), 400, ""),
        case(
            "a negative length",
            request(EVALUATE, &of_length("-1"), b"{}"),
            400,
            "",
        ),
        case("a query that is no text", query, 400, "invalid_query"),
        case("a name that is no text", name, 400, "invalid_path"),
        case("a host that is no text", host, 403, "host_refused"),
    ]
}

/// Bodies that are not what their heads say, or too much.
fn bodies(ask: &str) -> Vec<Case> {
    let chunked = format!("{JSON}Transfer-Encoding: chunked\r\n");
    let in_chunks = |body: &[u8]| request(EVALUATE, &chunked, body);
    let huge = vec![b' '; body::MAX_BYTES + 1];
    let large = chunk(&format!("{:x}", huge.len()), &huge);
    let short = with_length(JSON, ask.len() + 1);
    let longer = chunk("ffffffffffffffffff", b"{}");
    let unreadable = "body_unreadable";
    vec![
        case(
            "a body that breaks off",
            request(EVALUATE, &short, ask.as_bytes()),
            400,
            unreadable,
        ),
        case("no body at all", request(EVALUATE, &short, b""), 400, unreadable),
        case("a chunk that breaks off", in_chunks(b"ff\r\n{"), 400, unreadable),
        case(
            "chunks without an end",
            in_chunks(&chunk("2", b"{}")),
            400,
            unreadable,
        ),
        case(
            "a chunk of no size",
            in_chunks(&chunk("zz", b"{}")),
            400,
            unreadable,
        ),
        case(
            "a chunk longer than there is",
            in_chunks(&longer),
            400,
            unreadable,
        ),
        case(
            "a chunk that is too large",
            in_chunks(&large),
            413,
            "body_too_large",
        ),
        case("too much", whole(EVALUATE, JSON, &huge), 413, "body_too_large"),
    ]
}

/// Bodies that nest deeper than anything sensible: whoever follows them without a limit runs out of stack.
fn deep() -> Vec<Case> {
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let (lists, objects) = (nested("[", "]"), nested("{\"a\":", "}"));
    let yaml = format!("a: {lists}");
    let put = "PUT /v1/policies/p";
    vec![
        case(
            "deep lists",
            whole(EVALUATE, JSON, lists.as_bytes()),
            400,
            "invalid_body",
        ),
        case(
            "deep objects",
            whole(EVALUATE, JSON, objects.as_bytes()),
            400,
            "invalid_body",
        ),
        case(
            "a deep policy in JSON",
            whole(put, JSON, lists.as_bytes()),
            422,
            "invalid_policy",
        ),
        case(
            "a deep policy in YAML",
            whole(put, YAML_TYPE, yaml.as_bytes()),
            422,
            "invalid_policy",
        ),
    ]
}

#[tokio::test]
async fn what_is_wrong_on_the_wire_has_a_status_and_a_code_and_does_nothing() {
    let world = world().await;
    world.start_node();
    let before = state(&world).await;
    let ask = question(IAM, POSTGRES, 5432).to_string();
    for (what, bytes, status, code) in [heads(), bodies(&ask), deep()].concat() {
        let told = cut(world.api, &bytes).await;
        assert_eq!(told, (status, code.map(str::to_owned)), "{what}");
    }
    assert_eq!(state(&world).await, before);

    // Chunks are a body as any other.
    let chunked = format!("{JSON}Transfer-Encoding: chunked\r\n");
    let mut body = chunk(&format!("{:x}", ask.len()), ask.as_bytes());
    body.extend_from_slice(b"0\r\n\r\n");
    let told = cut(world.api, &request(EVALUATE, &chunked, &body)).await;
    assert_eq!(told, (200, None));
    assert_eq!(world.intake.stats().received_total(), before.received + 1);
}

#[tokio::test]
async fn a_head_may_have_so_many_bytes_and_fields_and_not_one_more() {
    let world = world().await;
    let bare = request("GET /v1/policies", "X: \r\n", b"").len();
    let with_fields = |number: usize| {
        // Two are there anyway.
        let fields: Vec<String> = (2..number).map(|number| format!("X-{number}: x\r\n")).collect();
        let fields = fields.concat();
        request("GET /v1/policies", &fields, b"")
    };
    for (more, status) in [(0, 200), (1, 431)] {
        let field = format!("X: {}\r\n", "x".repeat(HEAD_BYTES - bare + more));
        let head = request("GET /v1/policies", &field, b"");
        assert_eq!(head.len(), HEAD_BYTES + more);
        assert_eq!(cut(world.api, &head).await.0, status, "{more} more bytes");
        // In two pieces, of which the first is no head yet.
        let mut stream = TcpStream::connect(world.api).await.expect("connects");
        let (first, rest) = head.split_at(HEAD_BYTES - 1);
        stream.write_all(first).await.expect("sends");
        stream.flush().await.expect("sends");
        let _ = stream.write_all(rest).await;
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(30), reading)
            .await
            .expect("answered");
        let line = format!("HTTP/1.1 {status} ");
        assert!(
            answer.starts_with(line.as_bytes()),
            "{more} more bytes in two pieces"
        );
        let head = with_fields(HEAD_FIELDS + more);
        assert_eq!(cut(world.api, &head).await.0, status, "{more} more fields");
    }
}

#[tokio::test]
async fn yaml_that_means_more_than_it_says_is_refused() {
    let world = world().await;
    world.start_node();
    let before = state(&world).await;
    let good = records::policy("p", 1);
    let bomb = "\
a: &a [x, x, x, x, x, x, x, x, x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]
c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]
d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]
e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]
f: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]
g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f, *f]
h: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g, *g]
";
    let itself = "a: &a [*a]\n";
    let anchored = good.replace("metadata: {name: p}", "metadata: &m {name: p}\nx: *m");
    let merged = good.replace("metadata: {name: p}", "metadata: {<<: {name: p}}");
    let twice = good.replace("metadata: {name: p}", "metadata: {name: p, name: p}");
    let two = format!("{good}---\n{}", records::policy("q", 1));
    for body in [bomb, itself, &anchored, &merged, &twice, &two] {
        let reply = send(world.api, "PUT", "/v1/policies/p", YAML, body).await;
        assert_eq!(reply.status, 422, "{body}: {}", reply.body);
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (422, "invalid_policy"),
            "{body}: {}",
            reply.body
        );
        assert!(
            !reply.json()["errors"].as_array().expect("a list").is_empty(),
            "{body}"
        );
    }
    assert_eq!(state(&world).await, before);
    assert_eq!(
        send(world.api, "PUT", "/v1/policies/p", YAML, &good).await.status,
        200
    );
}
