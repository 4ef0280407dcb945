// SPDX-License-Identifier: Apache-2.0
//! Request bodies of a bounded size: JSON, and policies as YAML. The server bounds their time.

use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;

use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::problem::{ApiProblem, field};
use super::server::SlowBody;
use crate::problem::Problem;

/// Most bytes of a body.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Reads a body as JSON.
pub(super) async fn json<T: DeserializeOwned, B>(headers: &HeaderMap, body: B) -> Result<T, ApiProblem>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    if media_type(headers) != Some(MediaType::Json) {
        return Err(unsupported("send the body as `Content-Type: application/json`"));
    }
    parsed(&read(body).await?)
}

/// The object that bytes are.
pub(super) fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiProblem> {
    serde_json::from_slice(bytes)
        .map(|Object(value)| value)
        .map_err(|error| ApiProblem::fields("invalid_body", vec![json_problem(&error)]))
}

/// What is read of an object, and of nothing else: a structure could be read of a list of its fields as well, which is not
/// what is described.
#[derive(Debug, Default)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// Reads a body as the text of a policy document: YAML, or JSON, which is YAML too.
pub(super) async fn document(headers: &HeaderMap, body: axum::body::Body) -> Result<String, ApiProblem> {
    let Some(media_type) = media_type(headers) else {
        let detail = "send the policy as `Content-Type: application/yaml` or `application/json`";
        return Err(unsupported(detail));
    };
    let bytes = read(body).await?;
    if media_type == MediaType::Json
        && let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes)
    {
        return Err(ApiProblem::fields("invalid_body", vec![json_problem(&error)]));
    }
    String::from_utf8(Vec::from(bytes)).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].split(|byte| *byte == b'\n').count() as u64;
        let problem = Problem {
            line,
            column: 1,
            ..field("", format!("is not UTF-8 text (byte {valid})"))
        };
        ApiProblem::fields("invalid_body", vec![problem])
    })
}

fn json_problem(error: &serde_json::Error) -> Problem {
    Problem {
        line: error.line() as u64,
        column: error.column() as u64,
        ..field("", error.to_string())
    }
}

fn unsupported(detail: &str) -> ApiProblem {
    ApiProblem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", detail)
}

/// Reads a body of a bounded size.
async fn read<B>(body: B) -> Result<Bytes, ApiProblem>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut body = std::pin::pin!(body);
    match whole(body.as_mut()).await {
        Ok(bytes) => Ok(bytes),
        Err(error) if contains::<LengthLimitError>(&*error) => {
            discard(body).await;
            let detail = format!("a body has at most {MAX_BYTES} bytes");
            Err(ApiProblem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                detail,
            ))
        }
        Err(error) if contains::<SlowBody>(&*error) => Err(ApiProblem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the body did not come in time",
        )),
        Err(error) => Err(ApiProblem::bad_request("body_unreadable", error.to_string())),
    }
}

/// Reads on for as much again: with something unread the system ends the connection with a reset, which can overtake the
/// answer.
async fn discard<B: Body<Data = Bytes>>(mut body: Pin<&mut B>) {
    let mut left = MAX_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

async fn whole<B>(body: B) -> Result<Bytes, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut body = std::pin::pin!(Limited::new(body, MAX_BYTES));
    // Nearly every body comes in one piece, which is not copied.
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MediaType {
    Json,
    Yaml,
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = text.split(';').next().unwrap_or_default().trim();
    let is_one_of = |names: &[&str]| names.iter().any(|name| essence.eq_ignore_ascii_case(name));
    if is_one_of(&["application/json"]) {
        Some(MediaType::Json)
    } else if is_one_of(&[
        "application/yaml",
        "application/x-yaml",
        "text/yaml",
        "text/x-yaml",
    ]) {
        Some(MediaType::Yaml)
    } else {
        None
    }
}

/// Whether it is that error, or was caused by it.
fn contains<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    error.is::<E>() || error.source().is_some_and(contains::<E>)
}
