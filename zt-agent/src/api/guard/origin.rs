// SPDX-License-Identifier: Apache-2.0
//! Requests that a page of somebody else has a browser send.
//!
//! A browser on this machine reaches a loopback address, and one with a client certificate reaches an engine, whatever page
//! it shows. Of most such requests the page learns nothing, for no answer allows it to; but they cost, evaluations are
//! recorded, and what a page may send without asking has changed over the years. So none is served. Programs that are no
//! browsers send neither of these headers.

use axum::http::{HeaderMap, Method, Request, header};

/// Says how a page that sends a request stands to where it is sent (Fetch Metadata).
const SITE: &str = "sec-fetch-site";
const MODE: &str = "sec-fetch-mode";
const DESTINATION: &str = "sec-fetch-dest";

/// Whether another site's page has sent a request: one of another origin, which another port of this machine is too.
pub(super) fn is_of_another_site<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    if headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| !is_own(origin.as_bytes(), headers))
    {
        return true;
    }
    let mut sites = headers.get_all(SITE).iter();
    // `none`: the operator typed the address, or opened a bookmark.
    sites.any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none")) && !is_link_to_page(request)
}

/// Whether an origin is the one that the request goes to.
fn is_own(origin: &[u8], headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    let bare = origin
        .strip_prefix(b"http://")
        .or_else(|| origin.strip_prefix(b"https://"));
    !host.is_empty() && bare.is_some_and(|bare| bare.eq_ignore_ascii_case(host))
}

/// Whether somebody followed a link to the page: it says nothing of what it shows to where the link was, and is in no frame.
fn is_link_to_page<B>(request: &Request<B>) -> bool {
    let is = |name: &str, value: &[u8]| {
        let mut given = request.headers().get_all(name).iter();
        given.next().is_some_and(|given| given.as_bytes() == value) && given.next().is_none()
    };
    request.method() == Method::GET
        && request.uri().path() == "/"
        && is(MODE, b"navigate")
        && is(DESTINATION, b"document")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: Method, path: &str, headers: &[(&str, &str)]) -> bool {
        let mut builder = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        is_of_another_site(&builder.body(()).expect("a request"))
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:8054");

    #[test]
    fn programs_and_the_page_itself_are_served() {
        for headers in [
            &[HOST][..],
            &[HOST, ("sec-fetch-site", "same-origin")],
            &[HOST, ("sec-fetch-site", "none")],
            &[
                HOST,
                ("origin", "http://127.0.0.1:8054"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[("host", "localhost:9000"), ("origin", "http://LOCALHOST:9000")],
            &[
                ("host", "engine.example:8054"),
                ("origin", "https://engine.example:8054"),
            ],
        ] {
            assert!(!refused(Method::POST, "/v1/evaluate", headers), "{headers:?}");
        }
    }

    #[test]
    fn no_other_page_is() {
        for headers in [
            // Another site, an older browser that sends no metadata.
            &[HOST, ("origin", "https://evil.example")][..],
            // Sandboxed frames, files, redirects over several sites.
            &[HOST, ("origin", "null")],
            &[HOST, ("origin", "")],
            // Another service on this machine.
            &[HOST, ("origin", "http://127.0.0.1:3000")],
            &[HOST, ("origin", "http://localhost:8054")],
            &[HOST, ("origin", "http://127.0.0.1")],
            &[HOST, ("origin", "http://127.0.0.1:80540")],
            &[HOST, ("origin", "file://127.0.0.1:8054")],
            &[("origin", "http://127.0.0.1:8054")],
            // One right answer does not make up for a wrong one.
            &[
                HOST,
                ("origin", "http://127.0.0.1:8054"),
                ("origin", "https://evil.example"),
            ],
            // What sends no origin: images, scripts, forms that GET.
            &[
                HOST,
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "no-cors"),
            ],
            &[HOST, ("sec-fetch-site", "same-site")],
            &[HOST, ("sec-fetch-site", "anything else")],
            &[HOST, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
        ] {
            for path in ["/v1/status", "/"] {
                assert!(refused(Method::GET, path, headers), "{path} {headers:?}");
            }
        }
    }

    #[test]
    fn a_link_leads_to_the_page_and_nowhere_else() {
        let link = [
            HOST,
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert!(!refused(Method::GET, "/", &link));
        assert!(!refused(Method::GET, "/?x=1", &link));
        assert!(refused(Method::GET, "/v1/status", &link));
        assert!(refused(Method::POST, "/", &link));
        let framed = link.map(|(name, value)| (name, if value == "document" { "iframe" } else { value }));
        assert!(refused(Method::GET, "/", &framed));
        // A form of another site navigates, too, and says from where.
        let posted = [
            link[0],
            link[1],
            link[2],
            link[3],
            ("origin", "https://evil.example"),
        ];
        assert!(refused(Method::GET, "/", &posted));
    }
}
