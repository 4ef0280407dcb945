// SPDX-License-Identifier: Apache-2.0
//! The client against servers that behave, and servers that do not.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::connect::Stream;
use super::*;

/// A server that gives `response` to one request; its URL, and what it was asked.
async fn server(response: &str) -> (Client, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let api = format!("http://{}/", listener.local_addr().expect("address"));
    let response = response.to_owned();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.expect("request");
        stream.write_all(response.as_bytes()).await.expect("response");
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (
        Client::new(&ApiArgs {
            api,
            ..ApiArgs::default()
        })
        .expect("url"),
        asked,
    )
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn questions_are_encoded_and_answers_read() {
    let (client, asked) = server(&answer("200 OK", r#"{"records":[]}"#)).await;
    let query = [("source", "spiffe://a/b c".to_owned()), ("limit", "5".to_owned())];
    assert_eq!(
        client.get("/v1/audit", &query).await.expect("answer"),
        json!({"records": []})
    );
    let asked = asked.await.expect("server");
    assert!(
        asked.starts_with("GET /v1/audit?source=spiffe%3A%2F%2Fa%2Fb%20c&limit=5 HTTP/1.1\r\n"),
        "{asked}"
    );

    let (client, asked) = server(&answer("204 No Content", "")).await;
    assert_eq!(
        client
            .post("/v1/mode", &json!({"mode": "observe"}))
            .await
            .expect("answer"),
        Value::Null
    );
    assert!(
        asked
            .await
            .expect("server")
            .ends_with("\r\n\r\n{\"mode\":\"observe\"}")
    );
}

#[tokio::test]
async fn problem_details_are_passed_on() {
    let body = json!({
        "title": "Bad Request", "detail": "the request is not valid", "code": "invalid_request",
        "errors": [
            {"file": "", "line": 0, "column": 0, "field": "source.spiffe_id", "message": "not a SPIFFE ID"},
            {"message": "and more"},
        ],
    });
    let (client, _) = server(&answer("400 Bad Request", &body.to_string())).await;
    let error = client.get("/v1/status", &[]).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "the request is not valid\nsource.spiffe_id: not a SPIFFE ID\nand more"
    );
    let ClientError::Refused { status, code, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        (status, code.as_deref()),
        (StatusCode::BAD_REQUEST, Some("invalid_request"))
    );
}

#[tokio::test]
async fn other_services_are_recognised() {
    let (client, _) = server(&answer("404 Not Found", "<html>")).await;
    let error = client
        .get("/v1/status", &[])
        .await
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("answered 404 Not Found; is another service listening there?"),
        "{error}"
    );
    let (client, _) = server(&answer("200 OK", "<html>")).await;
    let error = client.get("/v1/status", &[]).await.expect_err("html").to_string();
    assert!(error.contains("did not answer with JSON"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_explained() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let api = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let client = Client::new(&ApiArgs {
        api,
        ..ApiArgs::default()
    })
    .expect("url");
    let error = client
        .get("/v1/status", &[])
        .await
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("Connection refused") && error.contains("is zt-agent running?"),
        "{error}"
    );

    let (client, _) = server("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{").await;
    let error = client.get("/v1/status", &[]).await.expect_err("cut").to_string();
    assert!(error.contains("stopped answering"), "{error}");
}

#[tokio::test]
async fn only_a_host_or_a_socket_is_a_url() {
    for url in [
        "127.0.0.1:8054",
        "ftp://127.0.0.1:8054",
        "unix://run/agent.sock",
        "http://",
        "http://localhost/v1",
        "",
        "http://localhost :1",
    ] {
        let error = Client::new(&ApiArgs {
            api: url.into(),
            ..ApiArgs::default()
        })
        .expect_err(url)
        .to_string();
        assert!(error.contains("write one like http://127.0.0.1:8054"), "{error}");
    }
    let unproven = ApiArgs {
        api: "https://127.0.0.1:8054".into(),
        ..ApiArgs::default()
    };
    let error = Client::new(&unproven).expect_err("no certificate").to_string();
    assert!(error.contains("--tls-cert, --tls-key and --tls-ca"), "{error}");
}

#[tokio::test]
async fn the_agent_of_this_machine_is_asked_over_its_socket_if_that_can_be_opened() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("agent.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let base = format!("http://{}", tcp.local_addr().expect("address"));
    let client = || Client {
        base: base.clone(),
        max_answer_bytes: MAX_ANSWER_BYTES,
        http: HttpClient::builder(TokioExecutor::new()).build(Connector(Way::Local(path.clone()))),
    };
    let respond = async |stream: &mut dyn Stream| {
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.expect("request");
        assert!(request[..length].starts_with(b"GET /v1/status"));
        stream
            .write_all(answer("200 OK", "{}").as_bytes())
            .await
            .expect("response");
    };
    let over_tcp = async || {
        let asking = client();
        let (answered, ()) = tokio::join!(asking.get("/v1/status", &[]), async {
            respond(&mut tcp.accept().await.expect("accept").0).await;
        });
        answered.expect("answer");
    };
    over_tcp().await;
    // One that an agent left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    over_tcp().await;
    std::fs::remove_file(&path).expect("removed");
    let socket = tokio::net::UnixListener::bind(&path).expect("bound");
    let asking = client();
    let (answered, ()) = tokio::join!(asking.get("/v1/status", &[]), async {
        respond(&mut socket.accept().await.expect("accept").0).await;
    });
    answered.expect("answer");

    let local = ApiArgs {
        api: LOCAL.into(),
        ..ApiArgs::default()
    };
    let (base, way) = way(&local).expect("a way");
    assert_eq!(base, "http://127.0.0.1:8054");
    assert!(matches!(way, Way::Local(path) if path.as_os_str() == "/run/zt/agent.sock"));
}

#[tokio::test]
async fn streams_are_read_to_their_end() {
    let events = "data: 1\n\nevent: lagged\ndata: 2\n\n";
    let (client, _) = server(&answer("200 OK", events)).await;
    let mut stream = client.events("/v1/decisions/stream", &[]).await.expect("stream");
    assert_eq!(stream.next().await.expect("event").expect("first").data, "1");
    assert_eq!(
        stream.next().await.expect("event").expect("second").name,
        "lagged"
    );
    assert_eq!(stream.next().await.expect("end"), None);
}
