//! A real browser publishes and plays.

use bywash_testkit::media::{assert_clean, count};
use bywash_testkit::{Browser, Nginx, Server, Setup, secs};

#[test]
fn what_a_browser_publishes_reaches_the_cdn_as_h264_and_aac() {
    let (nginx, server, browser) = (Nginx::start(), Server::start(Setup::default()), Browser::start());
    server.relay("cam", &nginx.url("cam"));
    let page = browser.open(&format!("{}&auto=camera", server.page("publish", "cam")), "");
    page.wait("at('state').textContent === 'Live.'", secs(20));
    server.wait_state("cam", &nginx.url("cam"), 2, secs(10));
    let file = nginx.wait_for("cam", 500);
    page.eval("at('stop').click()");
    let tags = assert_clean(&file);
    let (pictures, sounds) = count(&tags);
    assert!(pictures > 100 && sounds > 250, "{pictures} pictures, {sounds} packets of sound");
    for tag in tags.iter().filter(|tag| tag.is_frame()) {
        let codec = if tag.kind == 9 { tag.body[0] & 15 } else { tag.body[0] >> 4 };
        assert_eq!(codec, if tag.kind == 9 { 7 } else { 10 }, "H.264 and AAC");
    }
}
