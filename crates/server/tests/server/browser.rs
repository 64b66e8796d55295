//! A real browser publishes and plays.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bywash_testkit::browser::Page;
use bywash_testkit::media::{assert_clean, count};
use bywash_testkit::server::binary;
use bywash_testkit::{Browser, Media, Nginx, Process, Scratch, Server, Setup, eventually, flash, secs};

/// Publishes what the browser's camera shows until nginx has `tags` tags of it; gives the page and nginx's recording.
fn publish<'a>(browser: &'a Browser, server: &Server, nginx: &Nginx, before: &str, tags: usize) -> (Page<'a>, PathBuf) {
    server.relay("cam", &nginx.url("cam"));
    let page = browser.open(&format!("{}&auto=camera", server.page("publish", "cam")), before);
    page.wait("at('state').textContent === 'Live.'", secs(20));
    let file = nginx.wait_for("cam", tags);
    (page, file)
}

#[test]
fn what_a_browser_publishes_reaches_the_cdn_as_h264_and_aac() {
    let (nginx, server, browser) = (Nginx::start(), Server::start(Setup::default()), Browser::start());
    let (page, file) = publish(&browser, &server, &nginx, "", 400);
    page.eval("at('stop').click()");
    page.wait("at('state').textContent === 'Stopped.'", secs(5));
    eventually("the stream ends with the page", secs(5), || {
        (server.ok("DescribeStreams", &[("StreamId", "cam")])["Total"] == 0).then_some(())
    });
    let tags = assert_clean(&file);
    let (pictures, sounds) = count(&tags);
    assert!(pictures > 100 && sounds > 200, "{pictures} pictures, {sounds} packets of sound");
    for tag in tags.iter().filter(|tag| tag.is_frame()) {
        let codec = if tag.kind == 9 { tag.body[0] & 15 } else { tag.body[0] >> 4 };
        assert_eq!(codec, if tag.kind == 9 { 7 } else { 10 }, "H.264 and AAC");
    }
}

/// Plays the stream in a page until pictures and sound have come out.
fn plays(browser: &Browser, server: &Server, stream: &str) {
    let page = browser.open(&format!("{}&auto=play", server.page("play", stream)), "");
    page.wait("at('state').textContent === 'Playing.'", secs(20));
    let told = "session.numbers('inbound-rtp').then(({ video, audio }) => ";
    page.wait(
        &format!("{told}video?.framesDecoded > 30 && audio?.totalAudioEnergy > 0 && audio.packetsReceived > 50)"),
        secs(20),
    );
    page.wait("at('video').videoWidth > 0 && at('video').currentTime > 0", secs(5));
}

#[test]
fn a_page_plays_what_a_browser_publishes() {
    let (server, browser) = (Server::start(Setup::default()), Browser::start());
    let page = browser.open(&format!("{}&auto=camera", server.page("publish", "cam")), "");
    page.wait("at('state').textContent === 'Live.'", secs(20));
    plays(&browser, &server, "cam");
}

#[test]
fn a_page_plays_what_comes_by_rtmp() {
    let (server, browser) = (Server::start(Setup::default()), Browser::start());
    let _publisher = Media::Plain.publish(&server.rtmp("show"));
    plays(&browser, &server, "show");
}

#[test]
fn the_console_leads_to_the_pages() {
    let (server, browser) = (Server::start(Setup::default()), Browser::start());
    let page = browser.open(&server.page("", "show").replace("/console/?", "/console?"), "");
    page.eval("at('play').click()");
    page.wait(
        "location.pathname === '/console/play' && document.querySelector('h1')?.textContent.trim() === 'Play show'",
        secs(10),
    );
}

#[test]
fn a_flash_and_a_beep_stay_together() {
    let (nginx, server, scratch) = (Nginx::start(), Server::start(Setup::default()), Scratch::new());
    let (pictures, sound) = flash::files(&scratch, 20);
    let browser = Browser::with_files(&pictures, &sound);
    // Fifteen seconds: thirty pictures and forty-seven packets of sound each.
    let (page, file) = publish(&browser, &server, &nginx, flash::WATCH, 1150);
    let given = flash::noted(&page.eval("flashes"), &page.eval("beeps"));
    let got = flash::recorded(&file);
    println!("given {given:.1?}, recorded {got:.1?}");
    assert!(given.len() > 8 && got.len() > 8, "given {given:.1?}, recorded {got:.1?}");
    let (given, got) = (given[given.len() / 2], got[got.len() / 2]);
    assert!((got - given).abs() < 40.0, "flash after beep: {given:.1} ms at the devices, {got:.1} ms at the CDN");
}

#[test]
fn demo_shows_what_a_browser_publishes() {
    let (dir, browser) = (Scratch::new(), Browser::start());
    let mut demo = Command::new(binary());
    demo.args(["demo", "--whip", "--for", "10s"]).current_dir(dir.join("")).stdin(Stdio::null()).stdout(Stdio::piped());
    // Another demonstration may look for free ports at the same moment.
    for key in ["http", "rtmp", "webrtc"] {
        demo.arg("--set").arg(format!("{key}.listen=127.0.0.1:{}", bywash_testkit::port()));
    }
    let mut demo = Process::start(&mut demo);
    let mut out = BufReader::new(demo.child().stdout.take().expect("it is piped"));
    let page = loop {
        let mut line = String::new();
        assert!(out.read_line(&mut line).expect("text") > 0, "the demo ended before it named a page");
        if let Some(page) = line.trim().strip_prefix("publish ") {
            break page.trim().to_owned();
        }
    };
    // Nobody is there at once.
    std::thread::sleep(secs(2));
    let page = browser.open(&format!("{page}&auto=camera"), "");
    page.wait("at('state').textContent === 'Live.'", secs(8));
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert_eq!(eventually("it ends", secs(5), || demo.exit_code()), 0, "{rest}");
    assert!(rest.contains("arrived  pictures and sound"), "{rest}");
}
