//! The customer's backend hears of everything, once, signed, and in order; whatever fails.

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{Answer, Publisher, Receiver, Server, Setup, eventually, secs, stays};

fn told(receiver: &Receiver) -> Setup {
    let url = receiver.url();
    Setup {
        server: "publish.grace = \"1s\"".into(),
        app: format!("callback.stream = {url:?}\ncallback.state = {url:?}"),
        ..Setup::default()
    }
}

fn live(server: &Server, name: &str) -> Flow {
    Flow::start(vec![Publisher::connect(&server.rtmp(name)).expect("it is taken")], Pace::SMALL)
}

#[test]
fn a_stream_is_announced_and_its_end_too() {
    let receiver = Receiver::start();
    let server = Server::start(told(&receiver));
    let flow = live(&server, "show");
    let create = receiver.wait_any("stream_create", "show");
    assert_eq!(create["appid"], bywash_testkit::server::APP.to_string());
    assert_eq!(create["recreate"], "0");
    assert!(create.as_object().expect("an object").values().all(|it| it.is_string() || it.is_array()), "{create}");
    drop(flow);
    let close = receiver.wait_any("stream_close", "show");
    for same in ["stream_sid", "stream_seq", "create_time_ms"] {
        assert_eq!(close[same], create[same], "{same}");
    }
    let _flow = live(&server, "show");
    let again = eventually("announced again", secs(5), || receiver.of("stream_create", "show").get(1).cloned());
    assert_ne!(again["stream_sid"], create["stream_sid"]);
    let seq =
        |it: &serde_json::Value| it["stream_seq"].as_str().and_then(|it| it.parse::<i64>().ok()).expect("a number");
    assert_eq!(seq(&again), seq(&create) + 1);
    assert!(receiver.refused().is_empty(), "a callback without a good signature");
}

#[test]
fn callbacks_are_durable() {
    let receiver = Receiver::start();
    receiver.set(Answer::Down);
    let server = Server::start(told(&receiver));
    let flow = live(&server, "show");
    eventually("the callback is owed", secs(5), || {
        let data = server.ok("DescribeCallbacks", &[("State", "pending")]);
        data["Callbacks"].as_array()?.iter().any(|it| it["Event"] == "stream_create").then_some(())
    });
    let server = server.kill_9_and_start();
    drop(flow);
    receiver.set(Answer::Status(200));
    let create = receiver.wait("stream_create", "show", secs(35), |_| true);
    // The stream was cut by the kill: that is told as well, after its beginning.
    let close = receiver.wait("stream_close", "show", secs(35), |_| true);
    assert_eq!(close["stream_sid"], create["stream_sid"]);
    stays("each came once", secs(3), || {
        receiver.of("stream_create", "show").len() == 1 && receiver.of("stream_close", "show").len() == 1
    });
    let data = server.ok("DescribeCallbacks", &[("State", "pending")]);
    assert_eq!(data["Total"], 0, "{data}");
}

#[test]
fn a_failing_receiver_is_tried_again_with_the_same_body() {
    let receiver = Receiver::start();
    receiver.set(Answer::Status(500));
    let server = Server::start(told(&receiver));
    let _flow = live(&server, "show");
    eventually("two attempts", secs(8), || (receiver.refused().len() >= 2).then_some(()));
    receiver.set(Answer::Status(200));
    let taken = receiver.wait("stream_create", "show", secs(12), |_| true);
    assert_eq!(taken, receiver.refused()[0]);
}

#[test]
fn a_hanging_receiver_delays_nobody_elses_callbacks() {
    let (hanging, good) = (Receiver::start(), Receiver::start());
    hanging.set(Answer::Hang);
    let second = format!(
        "callback.stream = {:?}\n[[app]]\nid = 77\nserver_secret = \"{}\"\ncallback_secret = \"{}\"\ncallback.stream = {:?}",
        hanging.url(),
        bywash_testkit::server::SERVER_SECRET,
        bywash_testkit::server::CALLBACK_SECRET,
        good.url(),
    );
    let server = Server::start(Setup::app(second));
    let publish = |app: u32, name: &str| {
        Publisher::connect(&format!("rtmp://127.0.0.1:{}/{app}/{name}", server.rtmp_port())).expect("it is taken")
    };
    let mut streams: Vec<Publisher> = (0..10).map(|n| publish(bywash_testkit::server::APP, &format!("s{n}"))).collect();
    streams.push(publish(77, "show"));
    let _flow = Flow::start(streams, Pace::SMALL);
    eventually("the good one hears at once", secs(3), || good.of("stream_create", "show").pop());
}

/// A server whose `show` the wrong receiver did not take, with the right one in its configuration.
fn corrected(wrong: &Receiver, right: &Receiver) -> (Server, Flow) {
    wrong.set(Answer::Status(404));
    let server = Server::start(told(wrong));
    let flow = live(&server, "show");
    eventually("an attempt", secs(5), || wrong.refused().iter().any(|it| it["event"] == "stream_create").then_some(()));
    let config = std::fs::read_to_string(server.config()).expect("a configuration");
    std::fs::write(server.config(), config.replace(&wrong.url(), &right.url())).expect("it can be written");
    (server, flow)
}

#[test]
fn a_corrected_url_gets_what_the_wrong_one_did_not_take() {
    let (wrong, right) = (Receiver::start(), Receiver::start());
    let (server, _flow) = corrected(&wrong, &right);
    server.process().signal("HUP");
    right.wait("stream_create", "show", secs(20), |_| true);

    // It is delivered once its answer has been written down.
    let id = eventually("delivered", secs(5), || {
        let all = server.ok("DescribeCallbacks", &[("State", "delivered")]);
        let mut callbacks = all["Callbacks"].as_array()?.iter().filter(|it| it["Event"] == "stream_create");
        callbacks.find_map(|it| it["Id"].as_i64())
    });
    server.ok("RetryCallbacks", &[("Id[]", &id.to_string())]);
    eventually("sent again", secs(5), || (right.of("stream_create", "show").len() == 2).then_some(()));
}

#[test]
fn a_url_that_was_corrected_for_the_next_start_gets_it_too() {
    let (wrong, right) = (Receiver::start(), Receiver::start());
    let (server, _flow) = corrected(&wrong, &right);
    let _server = server.kill_9_and_start();
    right.wait("stream_create", "show", secs(40), |_| true);
}
