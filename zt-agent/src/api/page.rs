// SPDX-License-Identifier: Apache-2.0
//! `GET /`: a page for people, made of files that are in the program. It asks the API as any other caller does, so that it
//! shows nothing that its caller may not read, and changes nothing.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};

/// What a browser may do for the page: load its own files, ask this API, and nothing else. Texts of workloads can be neither
/// scripts nor markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// What is said with every file.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    // Another version of the agent has another page.
    (header::CACHE_CONTROL, "no-store"),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
struct File {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($name:literal, $media_type:expr) => {
        File {
            name: $name,
            media_type: $media_type,
            text: include_str!(concat!("page/", $name)),
        }
    };
}

const INDEX: File = file!("index.html", HTML);

/// The others, each below `/page/`.
const FILES: [File; 17] = [
    file!("page.css", CSS),
    file!("icon.svg", "image/svg+xml"),
    file!("main.js", JAVASCRIPT),
    file!("ask.js", JAVASCRIPT),
    file!("element.js", JAVASCRIPT),
    file!("name.js", JAVASCRIPT),
    file!("place.js", JAVASCRIPT),
    file!("table.js", JAVASCRIPT),
    file!("graph.js", JAVASCRIPT),
    file!("live.js", JAVASCRIPT),
    file!("policies.js", JAVASCRIPT),
    file!("enforcing.js", JAVASCRIPT),
    file!("judged.js", JAVASCRIPT),
    file!("candidate.js", JAVASCRIPT),
    file!("rollout.js", JAVASCRIPT),
    file!("recommend.js", JAVASCRIPT),
    file!("compared.js", JAVASCRIPT),
];

impl File {
    fn answer(&self) -> Response {
        let mut response = self.text.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Shows the page.
#[utoipa::path(get, path = "/", tag = "node", responses(
    (status = 200, description = "A page that shows, in a browser, what this API answers", body = String, content_type = "text/html"),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn index() -> Response {
    INDEX.answer()
}

/// A file of the page.
#[utoipa::path(get, path = "/page/{file}", tag = "node",
    params(("file" = String, Path, description = "One of the files that the page names")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/css"), (String = "text/javascript"), (String = "image/svg+xml"))),
        (status = "4XX", description = "There is none of that name", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn file(
    name: Result<Path<String>, PathRejection>,
    given: Given,
) -> Result<Response, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    // A name that is no text is none of them.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let file = FILES.iter().find(|file| file.name == name);
    file.map(File::answer).ok_or_else(|| {
        ApiProblem::new(
            axum::http::StatusCode::NOT_FOUND,
            "not_found",
            "the page has no file of that name",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_its_files_and_nothing_elsewhere() {
        for file in std::iter::once(&INDEX).chain(&FILES) {
            assert!(file.text.is_ascii(), "{}", file.name);
            for word in [
                "http:",
                "https:",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                let text = file.text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(word), "{} has {word}", file.name);
            }
            // What a strict policy would not run.
            assert!(
                !file.text.contains(" style=") && !file.text.contains(" onclick="),
                "{}",
                file.name
            );
        }
        let imported = FILES.iter().filter(|file| file.media_type == JAVASCRIPT);
        for file in imported.flat_map(|file| file.text.split("from \"./").skip(1)) {
            let name = file.split('"').next().expect("a name");
            assert!(FILES.iter().any(|file| file.name == name), "{name}");
        }
        for named in INDEX.text.split("\"/page/").skip(1) {
            let name = named.split('"').next().expect("a name");
            assert!(FILES.iter().any(|file| file.name == name), "{name}");
        }
    }
}
