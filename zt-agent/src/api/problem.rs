// SPDX-License-Identifier: Apache-2.0
//! Errors as RFC 9457 problem details.

use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::Problem;

/// An error answer: `application/problem+json` with a stable `code`.
#[derive(Debug, Clone)]
pub struct ApiProblem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<Problem>,
    retry_after: Option<u64>,
}

/// Problem details (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(super) struct Details {
    /// Always `about:blank`: `code` says which problem it is.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// Which problem it is; these do not change.
    code: &'static str,
    /// What happened, to what, and what to do about it.
    detail: String,
    /// What is wrong with the request or with files, each with its place.
    errors: Vec<Problem>,
}

impl ApiProblem {
    /// A problem; `code` is part of the contract with users.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// The same with the seconds after which to try again.
    pub(super) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The same with what is wrong in detail.
    pub(super) fn with_errors(mut self, errors: Vec<Problem>) -> Self {
        self.errors = errors;
        self
    }

    /// The request says something that cannot be.
    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// Fields of the request, or parameters of its query, that are wrong.
    pub(super) fn fields(code: &'static str, errors: Vec<Problem>) -> Self {
        Self::bad_request(code, "the request is not valid: see `errors`").with_errors(errors)
    }

    /// Something behind the API does not answer.
    pub(super) fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }
}

/// One wrong field of a request.
pub(super) fn field(name: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem {
        file: String::new(),
        line: 0,
        column: 0,
        field: name.into(),
        message: message.into(),
    }
}

impl IntoResponse for ApiProblem {
    fn into_response(self) -> Response {
        let details = Details {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            errors: self.errors,
        };
        let mut response = (self.status, axum::Json(details)).into_response();
        let media_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

pub(super) async fn not_found(uri: Uri) -> ApiProblem {
    ApiProblem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is nothing at {}", uri.path()),
    )
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiProblem {
    let detail = format!("{} does not take {method}", uri.path());
    ApiProblem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
