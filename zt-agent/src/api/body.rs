// SPDX-License-Identifier: Apache-2.0
//! Request bodies: JSON of a bounded size, within a bounded time.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::problem::ApiProblem;
use crate::problem::Problem;

/// Most bytes of a body.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// How long a client may take to send it.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Reads a body as JSON.
pub(super) async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, ApiProblem> {
    if !is_json(headers) {
        let detail = "send the body as `Content-Type: application/json`";
        return Err(ApiProblem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_type",
            detail,
        ));
    }
    let read = tokio::time::timeout(MAX_TIME, to_bytes(body, MAX_BYTES)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_too_long(&error) => {
            let detail = format!("a body has at most {MAX_BYTES} bytes");
            return Err(ApiProblem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                detail,
            ));
        }
        Ok(Err(error)) => return Err(ApiProblem::bad_request("body_unreadable", error.to_string())),
        Err(_) => {
            let detail = "the body did not come within 10 seconds";
            return Err(ApiProblem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                detail,
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let problem = Problem {
            file: String::new(),
            line: error.line() as u64,
            column: error.column() as u64,
            field: String::new(),
            message: error.to_string(),
        };
        ApiProblem::fields("invalid_body", vec![problem])
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = media_type
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

fn is_too_long(error: &(dyn Error + 'static)) -> bool {
    error.is::<LengthLimitError>() || error.source().is_some_and(is_too_long)
}
