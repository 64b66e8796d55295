//! The pages of `/console`: publishing from a browser and watching.
//!
//! Invariant: the pages are the same for everybody. What they show comes from their own address and from the answers
//! they get; no input is ever written into them.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// Scripts and media of our own, and nothing of anybody else's.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      media-src 'self' blob: mediastream:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The pages, by path, with their media types.
static FILES: [(&str, &str, &str); 8] = [
    ("/console", HTML, concat!(include_str!("head.html"), include_str!("index.html"))),
    ("/console/index.js", SCRIPT, include_str!("index.js")),
    (
        "/console/publish",
        HTML,
        concat!(include_str!("head.html"), include_str!("publish.html"), include_str!("session.html")),
    ),
    ("/console/publish.js", SCRIPT, include_str!("publish.js")),
    (
        "/console/play",
        HTML,
        concat!(include_str!("head.html"), include_str!("play.html"), include_str!("session.html")),
    ),
    ("/console/play.js", SCRIPT, include_str!("play.js")),
    ("/console/session.js", SCRIPT, include_str!("session.js")),
    ("/console/page.css", "text/css; charset=utf-8", include_str!("page.css")),
];

/// Serves the pages.
pub fn router() -> Router {
    FILES.iter().fold(Router::new(), |router, (path, kind, text)| {
        let page = async move || {
            let headers = [
                (header::CONTENT_TYPE, *kind),
                (header::CACHE_CONTROL, "no-cache"),
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                // A page's address may carry a token.
                (header::REFERRER_POLICY, "no-referrer"),
            ];
            (headers, *text).into_response()
        };
        router.route(path, get(page))
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn the_pages_name_only_what_is_served_here() {
        for (path, _, text) in FILES {
            let used = text.split('"').filter(|it| it.starts_with("/console/"));
            for path in used.chain([path]) {
                let answer = router().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK, "{path}");
            }
            assert!(!text.contains("http://") && !text.contains("https://"), "{path} calls out");
            assert!(!text.contains("innerHTML"), "{path} writes what it reads as markup");
        }
    }
}
