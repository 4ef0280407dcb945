// SPDX-License-Identifier: Apache-2.0
//! The protocol: lists in pages, watches line by line, and changes with their conflicts.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::select::{Parameters, Target, event, selected, target};
use super::store::{Place, status};
use super::{Saying, Shared};

/// How often watches are told where they are.
const BOOKMARK: Duration = Duration::from_millis(500);

/// Serves until it is aborted, and then no connection is left.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let router = Router::new().fallback(answer).with_state(shared);
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let io = hyper_util::rt::TokioIo::new(stream);
        connections.spawn(async move {
            // A client that goes is no error.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(parameters): Query<Parameters>,
    body: Bytes,
) -> Response {
    let Some(target) = target(uri.path()) else {
        return failed(404, "NotFound", "no such path");
    };
    let is_watch = parameters
        .get("watch")
        .is_some_and(|watch| watch == "true" || watch == "1");
    let begins = !parameters.contains_key("continue");
    if method == Method::GET && target.name.is_none() {
        shared.store().count(&target.collection, |counts| {
            if is_watch {
                counts.watches += 1;
            } else if begins {
                counts.lists += 1;
            }
        });
    }
    let faults = shared.faults.borrow().clone();
    sleep(faults.slow).await;
    if let Some(code) = faults.status.or(faults.watch_status.filter(|_| is_watch)) {
        let mut response = failed(code, "Fault", "the test wants it so");
        if let Some(seconds) = faults.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        return response;
    }
    if faults.silent && !is_watch {
        std::future::pending::<()>().await;
    }
    let name = target.name.clone();
    match (method, name.as_deref()) {
        (Method::GET, None) if is_watch => watch(shared, target, parameters),
        (Method::GET, None) => match faults.list_body {
            Some(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
            None => list(&shared, &target, &parameters),
        },
        (Method::POST, None) | (Method::PUT, Some(_)) => write(&shared, &target, body.as_ref(), false),
        (Method::GET, Some(name)) => {
            let namespace = target.namespace.as_deref().unwrap_or_default();
            match shared.store().get(&target.collection, namespace, name) {
                Some(object) => json_answer(200, &object),
                None => failed(404, "NotFound", "no such object"),
            }
        }
        (Method::PATCH, Some(_)) => write(&shared, &target, body.as_ref(), true),
        (Method::DELETE, Some(name)) => {
            let namespace = target.namespace.as_deref().unwrap_or_default();
            match shared.change(|store| store.delete(&target.collection, namespace, name)) {
                Some(object) => json_answer(200, &object),
                None => failed(404, "NotFound", "no such object"),
            }
        }
        _ => failed(405, "MethodNotAllowed", "not that way"),
    }
}

fn json_answer(code: u16, value: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (
        code,
        [(header::CONTENT_TYPE, "application/json")],
        value.to_string(),
    )
        .into_response()
}

fn failed(code: u16, reason: &str, message: &str) -> Response {
    json_answer(code, &status(code, reason, message))
}

fn list(shared: &Shared, target: &Target, parameters: &Parameters) -> Response {
    let store = shared.store();
    // `<version>/<namespace>/<name>`: behind which the page begins.
    let token = parameters.get("continue").map(|token| {
        let mut parts = token.splitn(3, '/').map(str::to_owned);
        let version = parts.next().and_then(|version| version.parse().ok()).unwrap_or(0);
        (
            version,
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()),
        )
    });
    let version = token.as_ref().map_or(store.version(), |(version, _)| *version);
    if store.since(version).is_none() {
        return failed(410, "Expired", "the continue parameter is too old");
    }
    let limit = parameters
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let after: Option<&Place> = token.as_ref().map(|(_, place)| place);
    let mut items = Vec::new();
    let mut last = None;
    let mut more = false;
    for (place, object) in store.list(&target.collection, after) {
        if !selected(target, parameters, object) {
            continue;
        }
        if items.len() == limit {
            more = true;
            break;
        }
        items.push(object);
        last = Some(place);
    }
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some((namespace, name)) = last.filter(|_| more) {
        metadata["continue"] = json!(format!("{version}/{namespace}/{name}"));
    }
    json_answer(
        200,
        &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }),
    )
}

/// Makes, replaces or changes an object.
fn write(shared: &Shared, target: &Target, body: &[u8], patch: bool) -> Response {
    let Ok(mut new) = serde_json::from_slice::<Value>(body) else {
        return failed(400, "BadRequest", "not JSON");
    };
    let namespace = target.namespace.clone().unwrap_or_default();
    let name = target.name.clone();
    let name = name
        .or_else(|| new["metadata"]["name"].as_str().map(str::to_owned))
        .unwrap_or_default();
    shared.change(|store| {
        let before = store.get(&target.collection, &namespace, &name);
        let made = target.name.is_none();
        let version = new["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        match &before {
            Some(_) if made => return failed(409, "AlreadyExists", "it is there"),
            None if !made && !patch => return failed(404, "NotFound", "no such object"),
            Some(before)
                if version
                    .as_ref()
                    .is_some_and(|version| before["metadata"]["resourceVersion"] != version.as_str()) =>
            {
                return failed(409, "Conflict", "the object has been modified");
            }
            _ => {}
        }
        if let Some(before) = &before {
            let mut object = before.clone();
            match (target.subresource.as_deref(), patch) {
                (Some("status"), true) => merge(&mut object["status"], new["status"].take()),
                (Some("status"), false) => object["status"] = new["status"].take(),
                (_, true) => merge(&mut object, new),
                (_, false) => {
                    // The status is the subresource's to change.
                    let status = before.get("status").cloned();
                    object = new;
                    if let (Some(status), Some(fields)) = (status, object.as_object_mut()) {
                        fields.insert("status".to_owned(), status);
                    }
                    object["metadata"]["uid"] = before["metadata"]["uid"].clone();
                }
            }
            new = object;
        }
        new["metadata"]["name"] = json!(name);
        if !namespace.is_empty() {
            new["metadata"]["namespace"] = json!(namespace);
        }
        json_answer(
            if before.is_some() { 200 } else { 201 },
            &store.put(&target.collection, new),
        )
    })
}

/// A JSON merge patch (RFC 7386).
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            if let Some(object) = into.as_object_mut() {
                object.remove(&field);
            }
        } else {
            merge(&mut into[&field], value);
        }
    }
}

fn watch(shared: Arc<Shared>, target: Target, parameters: Parameters) -> Response {
    let from = parameters
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .unwrap_or(0);
    if shared.store().since(from).is_none() {
        return failed(410, "Expired", "too old resource version");
    }
    let (sender, lines) = mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    tokio::spawn(tell(shared, target, parameters, from, sender));
    let stream = futures::stream::unfold(lines, move |mut lines: mpsc::Receiver<_>| async move {
        Some((lines.recv().await?, lines))
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

/// Tells a watch what happens until one of the two goes.
async fn tell(
    shared: Arc<Shared>,
    target: Target,
    parameters: Parameters,
    mut told: u64,
    out: mpsc::Sender<Result<Bytes, std::io::Error>>,
) {
    let bookmarks = parameters
        .get("allowWatchBookmarks")
        .is_some_and(|wanted| wanted == "true");
    let limit = parameters
        .get("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(3600);
    let mut over = pin!(sleep(Duration::from_secs(limit)));
    let mut sayings = shared.sayings.subscribe();
    let mut versions = shared.version.subscribe();
    let mut faults = shared.faults.subscribe();
    loop {
        let silent = faults.borrow_and_update().silent;
        let lines: Vec<String> = if silent {
            Vec::new()
        } else {
            let store = shared.store();
            if let Some(happened) = store.since(told) {
                told = store.version();
                let events = happened
                    .iter()
                    .filter_map(|happened| event(&target, &parameters, happened));
                events.map(|event| format!("{event}\n")).collect()
            } else {
                let gone = status(410, "Expired", "too old resource version");
                vec![format!("{}\n", json!({ "type": "ERROR", "object": gone }))]
            }
        };
        for line in lines {
            if out.send(Ok(line.into())).await.is_err() {
                return;
            }
        }
        tokio::select! {
            _ = versions.changed() => {}
            _ = faults.changed() => {}
            () = out.closed() => return,
            () = &mut over => return,
            () = sleep(BOOKMARK) => {
                let now = faults.borrow().clone();
                if bookmarks && !now.no_bookmarks && !now.silent {
                    let metadata = json!({ "resourceVersion": told.to_string() });
                    let mark = json!({ "type": "BOOKMARK", "object": { "kind": "Bookmark", "metadata": metadata } });
                    // Whether it is gone is noticed above.
                    let _ = out.send(Ok(format!("{mark}\n").into())).await;
                    shared.store().count(&target.collection, |counts| counts.bookmarks += 1);
                }
            }
            saying = sayings.recv() => match saying {
                Ok(Saying::Text(of, text)) if of.is_empty() || of == target.collection => {
                    let _ = out.send(Ok(text.into())).await;
                }
                Ok(Saying::Text(..)) | Err(_) => {}
                Ok(Saying::HangUp(in_a_line)) => {
                    if in_a_line {
                        let _ = out.send(Ok("{\"type\":\"ADDED\",\"object\":{\"meta".into())).await;
                        let _ = out.send(Err(std::io::Error::other("hung up"))).await;
                    }
                    return;
                }
            },
        }
    }
}
