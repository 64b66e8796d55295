//! Plan on a real store: what it starts, and what it tells whom.

use std::future::poll_fn;
use std::net::TcpListener;
use std::task::Poll;

use bytes::Bytes;
use bywash_media::{Codec, Environment, Frame, Kind, Time, Tracks, codec};
use futures_util::future::poll_immediate;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::*;
use crate::config::{self, App, Config, Format, Vendor};
use crate::lane::Lanes;
use crate::object::Urls;
use crate::secret::Secret;
use crate::segment::Folder;
use crate::space::Space;
use crate::store::tests::{Dir, key, set_full};
use crate::store::{Origin, Page, Record, RecordState, RecordStatus, Rule};

/// What plan works with, and a target that takes connections and never answers: relays to it stay as they are.
struct World {
    store: Store,
    hub: Arc<Hub>,
    live: Arc<live::Live>,
    lanes: Lanes,
    grace: Arc<ArcSwap<Duration>>,
    cdn: Mutex<config::Cdn>,
    target: TcpListener,
    dir: Dir,
}

impl World {
    async fn new() -> World {
        let dir = Dir::new();
        let live = Arc::<live::Live>::default();
        World {
            store: dir.open().await,
            hub: Arc::new(Hub::new(live.clone(), 1 << 20)),
            live,
            lanes: Lanes::start(1).unwrap(),
            grace: Arc::new(ArcSwap::from_pointee(Duration::ZERO)),
            cdn: Mutex::default(),
            target: TcpListener::bind("127.0.0.1:0").unwrap(),
            dir,
        }
    }

    fn app(&self) -> App {
        let url = Some("http://127.0.0.1:9/".to_owned());
        let (stream, record, state) = (url.clone(), url.clone(), url);
        App {
            id: 7,
            server_secret: Secret::new("secret"),
            callback_secret: Secret::new("secret"),
            environment: config::Environment::Both,
            publish_auth: config::PublishAuth::None,
            publish_key: Secret::default(),
            play_key: Secret::default(),
            callback: config::Callback { stream, record, state, ..config::Callback::default() },
            cdn: self.cdn.lock().unwrap().clone(),
            record: Default::default(),
            clear_whole_app: false,
            delete_media_string: false,
            stream_history: None,
        }
    }

    fn keeper(&self) -> (Keeper, mpsc::Receiver<Request>) {
        let hour = Duration::from_secs(3600);
        let relay = config::Relay { allow_private_targets: true, connect_timeout: hour, ..Config::default().relay };
        let media = self.dir.path().join("media");
        Keeper::new(Parts {
            store: self.store.clone(),
            hub: self.hub.clone(),
            live: self.live.clone(),
            apps: Arc::new(Apps::new(vec![self.app()])),
            renditions: Arc::default(),
            relay: Arc::new(ArcSwap::from_pointee(relay::Settings { config: relay, tls: relay::tls(None).unwrap() })),
            grace: self.grace.clone(),
            public_url: "http://127.0.0.1".into(),
            rtmp_base: "rtmp://127.0.0.1".into(),
            record: RecordSettings {
                folder: Folder::new(media.clone(), None),
                space: Space::new(media, 0),
                urls: Urls { public_url: "http://127.0.0.1".into(), ttl: None },
                bucket: false,
                segment: Duration::from_secs(6),
                bit_rate: 128_000,
            },
        })
    }

    /// Plan at work. It is not heard before the caller waits for something.
    fn start(&self) -> (Plan, JoinHandle<()>) {
        let (keeper, asked) = self.keeper();
        (keeper.plan.clone(), tokio::spawn(keeper.run(asked)))
    }

    fn arrival(&self, id: &str, user: &str) -> Arrival {
        Arrival {
            key: key(id),
            protocol: "RTMP",
            address: "127.0.0.1:5000".parse().unwrap(),
            user: user.into(),
            trace: Vec::new(),
            lane: self.lanes.pick().clone(),
        }
    }

    async fn change(&self, change: impl AsyncFnOnce(&mut Tx) -> Result<(), store::Error>) {
        let mut tx = self.store.begin().await.unwrap();
        change(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
    }

    fn address(&self, id: &str) -> String {
        format!("rtmp://{}/live/{id}", self.target.local_addr().unwrap())
    }

    /// From the next start on all streams are relayed to the target.
    fn default_everywhere(&self) {
        let target = format!("rtmp://{}/live", self.target.local_addr().unwrap());
        *self.cdn.lock().unwrap() =
            config::Cdn { relay_everything: true, default_target: Some(target), ..config::Cdn::default() };
    }

    /// The stream `id` is to be relayed to the target.
    async fn put_rule(&self, id: &str) {
        let address = self.address(id);
        self.change(async |tx| tx.rule_put(&key(id), &address, &Secret::new(&address), Origin::Api, 1).await).await;
    }

    /// The stream `id` is to be recorded until `end_ms`, which the rows say goes thus.
    async fn put_record(&self, id: &str, end_ms: i64, state: RecordState) {
        let record = Record {
            id: id.into(),
            key: key(id),
            vendor: Vendor::Tencent,
            origin: Origin::Api,
            created_ms: 1,
            end_ms,
            closed_ms: 0,
            status: RecordStatus { state, ..RecordStatus::default() },
        };
        self.change(async |tx| tx.record_put(&record).await).await;
    }

    async fn rule(&self, id: &str) -> Rule {
        self.store.read().await.unwrap().rule(&key(id), &self.address(id)).await.unwrap().unwrap()
    }

    /// What has been told, the oldest first, in a few words each.
    async fn told(&self) -> Vec<String> {
        let page = Page { number: 0, size: 1000 };
        let page = self.store.read().await.unwrap().outbox_page(7, Environment::Production, None, page).await;
        let words = page.unwrap().1.into_iter().rev().map(|told| {
            let body: Value = serde_json::from_str(&told.body).unwrap();
            let fields: &[&str] = match told.event.as_str() {
                "stream_create" => &["user_id", "recreate"],
                "stream_close" => &["user_id", "type"],
                _ => &["state", "last_error"],
            };
            let fields = fields.iter().filter_map(|field| body[field].as_str()).filter(|it| !it.is_empty());
            [told.event.as_str()].into_iter().chain(fields).collect::<Vec<_>>().join(" ")
        });
        words.collect()
    }

    /// Waits until the stream has ended, which could not be written.
    async fn wait_lost(&self, id: &str) {
        wait("the end is lost", async || self.hub.get(&key(id)).is_none() && self.store.trouble().is_some()).await;
    }

    async fn wait_told(&self, want: &[&str]) {
        wait(&format!("{want:?} is told"), async || self.told().await == want).await;
    }
}

/// Waits until it is so.
async fn wait(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never came that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_publisher_does_not_wait_for_all_that_calls_have_changed() {
    let world = World::new().await;
    let (mut keeper, asked) = world.keeper();
    let mut holds = Vec::new();
    for n in 0..20 {
        holds.push(keeper.publish(world.arrival(&n.to_string(), "")).await.unwrap());
        world.put_rule(&n.to_string()).await;
        keeper.woken.insert(key(&n.to_string()));
    }
    // Each write that is done takes a turn too, so none is.
    keeper.write_all().await;
    set_full(&world.store, true).await;
    let plan = keeper.plan.clone();
    let ask = |id: &str| plan.publish(world.arrival(id, ""));
    // Both are there when plan begins: the first has its place before any turn, the second after one.
    let (first, second) = (ask("first"), ask("second"));
    tokio::pin!(first, second);
    assert!(poll_immediate(&mut first).await.is_none() && poll_immediate(&mut second).await.is_none());
    let work = keeper.run(asked);
    tokio::pin!(work);
    // In one task with plan, and before it, so that nothing is done between a place and this look.
    let looked = poll_fn(|cx| match world.hub.get(&key("second")) {
        Some(_) => Poll::Ready(world.live.relays().len()),
        None => work.as_mut().poll(cx).map(|()| usize::MAX),
    });
    let before = looked.await;
    assert!(before < 3, "{before} were looked at first");
    set_full(&world.store, false).await;
    let all = async {
        wait("all are relayed", async || world.live.relays().len() == 20).await;
        assert!(first.await.is_ok() && second.await.is_ok());
    };
    tokio::select! {
        () = all => {}
        () = work => panic!("plan has ended"),
    }
}

#[tokio::test]
async fn streams_that_are_not_live_cost_nothing_however_many_are_woken() {
    let world = World::new().await;
    let (mut keeper, _asked) = world.keeper();
    let _hold = keeper.publish(world.arrival("live", "")).await.unwrap();
    (0..10_000).for_each(|n| keeper.plan.wake(key(&n.to_string())));
    keeper.plan.wake(key("live"));
    keeper.read_inbox();
    assert_eq!(keeper.woken, [key("live")].into());
    assert!(keeper.settle, "recordings of theirs may be over");
}

#[tokio::test]
async fn who_is_woken_again_and_again_comes_after_the_others() {
    let world = World::new().await;
    let (mut keeper, _asked) = world.keeper();
    let mut holds = Vec::new();
    for id in ["a", "b", "c"] {
        holds.push(keeper.publish(world.arrival(id, "")).await.unwrap());
        world.put_rule(id).await;
        keeper.woken.insert(key(id));
    }
    for _ in 0..3 {
        keeper.take_turn().await;
        keeper.woken.extend([key("a"), key("c")]);
    }
    assert_eq!(world.live.relays().len(), 3);
}

#[tokio::test]
async fn a_stream_that_came_and_went_while_nothing_could_be_written_is_told_of_from_its_beginning() {
    for (leave, close) in [(Leave::Finished, 0), (Leave::Silent, 1), (Leave::Lost, 4)] {
        let world = World::new().await;
        let (plan, _running) = world.start();
        set_full(&world.store, true).await;
        let hold = plan.publish(world.arrival("s", "u")).await.unwrap();
        hold.began(0);
        hold.leave(leave);
        world.wait_lost("s").await;
        set_full(&world.store, false).await;
        world.wait_told(&["stream_create u 0", &format!("stream_close u {close}")]).await;
    }
}

#[tokio::test]
async fn a_publisher_that_was_cut_is_told_as_such_however_late() {
    let world = World::new().await;
    let (plan, _running) = world.start();
    let hold = plan.publish(world.arrival("s", "u")).await.unwrap();
    hold.began(0);
    world.wait_told(&["stream_create u 0"]).await;
    world.change(async |tx| tx.forbid_put(&key("s"), 1).await).await;
    set_full(&world.store, true).await;
    plan.wake(key("s"));
    hold.cut.cancelled().await;
    world.wait_lost("s").await;
    set_full(&world.store, false).await;
    world.wait_told(&["stream_create u 0", "stream_close u 3"]).await;
}

#[tokio::test]
async fn a_recording_whose_end_cannot_be_written_is_tried_again_after_a_while() {
    let world = World::new().await;
    let (mut keeper, _asked) = world.keeper();
    world.put_record("s", 1, RecordState::Waiting).await;
    set_full(&world.store, true).await;
    let begun = Instant::now();
    for _ in 0..3 {
        // A call brings it up as well as the time does.
        keeper.plan.wake(key("s"));
        keeper.read_inbox();
        keeper.take_turn().await;
        keeper.write_all().await;
        assert!(keeper.next_deadline() >= Some(begun + ledger::RETRY));
        assert!(!keeper.may_settle());
    }
    set_full(&world.store, false).await;
    keeper.ledger.try_now();
    keeper.write_all().await;
    while keeper.may_settle() {
        keeper.take_turn().await;
        keeper.write_all().await;
        keeper.read_inbox();
    }
    world.wait_told(&["record_state ended"]).await;
    assert_eq!(keeper.next_deadline(), None);
}

#[tokio::test]
async fn a_recording_whose_app_takes_its_section_away_has_failed_once_its_files_are_told_of() {
    let world = World::new().await;
    let (keeper, asked) = world.keeper();
    let (plan, apps) = (keeper.plan.clone(), keeper.parts.apps.clone());
    let aac = config::Record { formats: vec![Format::Aac], ..config::Record::default() };
    apps.replace(vec![App { record: [("Tencent".into(), aac)].into(), ..world.app() }]);
    let _running = tokio::spawn(keeper.run(asked));
    world.put_record("s", 0, RecordState::Waiting).await;
    let mut hold = plan.publish(world.arrival("s", "")).await.unwrap();
    hold.began(0);
    let mut tracks = Tracks::default();
    tracks.set(codec::track(Codec::Aac, Bytes::from_static(&[0x11, 0x90])).unwrap());
    hold.publisher.set_tracks(tracks);
    for dts in (0..500).step_by(20).map(Time::from_millis) {
        let payload = Bytes::from_static(&[0; 100]);
        hold.publisher.push(Frame { track: Kind::Audio, dts, cts: Time::ZERO, key: true, payload });
    }
    // It holds back what it reads until it knows whether there are pictures.
    let read = |it: &live::Recording| it.bytes.load(std::sync::atomic::Ordering::Relaxed) > 0;
    wait("it reads", async || world.live.recordings().iter().any(|(_, it)| read(it))).await;
    apps.replace(vec![world.app()]);
    // The first look tells it to stop, the others find it stopping.
    (0..3).for_each(|_| plan.wake(key("s")));
    wait("it is over", async || world.live.recordings().is_empty()).await;
    hold.leave(Leave::Finished);
    wait("the stream is over", async || world.told().await.last().unwrap() == "stream_close 0").await;
    let told = world.told().await;
    assert_eq!(told[1..told.len() - 1], ["record_state recording", "record", "record_state failed"]);
}

#[tokio::test]
async fn what_a_start_could_not_write_is_put_right_before_anything_new_is_told() {
    let world = World::new().await;
    world.put_rule("s").await;
    let ran = Status::new(State::Relaying, Reason::None);
    world.change(async |tx| tx.rule_note(&key("s"), &world.address("s"), &ran).await.map(drop)).await;
    world.put_record("r", 0, RecordState::Recording).await;
    set_full(&world.store, true).await;
    let (mut keeper, asked) = world.keeper();
    keeper.recover().await.unwrap();
    let plan = keeper.plan.clone();
    let _running = tokio::spawn(keeper.run(asked));
    let _hold = plan.publish(world.arrival("s", "")).await.unwrap();
    wait("it is relayed", async || !world.live.relays().is_empty()).await;
    assert_eq!(world.rule("s").await.status.state, State::Relaying, "nothing can be written");
    set_full(&world.store, false).await;
    world.wait_told(&["relay_state 0 the server stopped", "record_state waiting", "relay_state 1"]).await;
    assert_eq!(world.rule("s").await.status.state, State::Requesting);
}

#[tokio::test]
async fn a_start_that_can_read_nothing_fails() {
    let world = World::new().await;
    world.store.clone().close().await;
    assert!(world.keeper().0.recover().await.is_err());
}

#[tokio::test]
async fn a_rule_that_is_put_again_before_plan_looks_says_that_its_relay_goes_on() {
    let world = World::new().await;
    let (plan, _running) = world.start();
    world.put_rule("s").await;
    let _hold = plan.publish(world.arrival("s", "")).await.unwrap();
    world.wait_told(&["relay_state 1"]).await;
    let address = world.address("s");
    let again = async |tx: &mut Tx| {
        tx.rule_delete(&key("s"), &address).await?;
        tx.rule_put(&key("s"), &address, &Secret::new(&address), Origin::Api, 2).await
    };
    world.change(again).await;
    assert_eq!(world.rule("s").await.status.state, State::None);
    plan.wake(key("s"));
    wait("the row says so", async || world.rule("s").await.status.state == State::Requesting).await;
    assert_eq!((world.live.relays().len(), world.told().await), (1, vec!["relay_state 1".to_owned()]));
}

#[tokio::test]
async fn a_relay_that_ends_after_its_rule_is_told_of_once() {
    let world = World::new().await;
    let (plan, running) = world.start();
    world.put_rule("s").await;
    let hold = plan.publish(world.arrival("s", "")).await.unwrap();
    world.wait_told(&["relay_state 1"]).await;
    let delete = async |tx: &mut Tx| tx.rule_delete(&key("s"), &world.address("s")).await.map(drop);
    world.change(delete).await;
    plan.wake(key("s"));
    world.wait_told(&["relay_state 1", "relay_state 0"]).await;
    running.abort();
    drop(hold);
    world.keeper().0.recover().await.unwrap();
    assert_eq!(world.told().await, ["relay_state 1", "relay_state 0"]);
}

#[tokio::test]
async fn a_relay_that_begins_after_its_rule_was_deleted_and_is_cut_by_a_stop_is_told_to_have_ended() {
    let world = World::new().await;
    world.put_rule("s").await;
    let (mut keeper, _asked) = world.keeper();
    let hold = keeper.publish(world.arrival("s", "")).await.unwrap();
    // Its row has never said that it runs.
    world.change(async |tx| tx.rule_delete(&key("s"), &world.address("s")).await.map(drop)).await;
    wait("it connects", async || !keeper.plan.inbox.lock().statuses.is_empty()).await;
    keeper.read_inbox();
    keeper.write_all().await;
    assert_eq!(world.told().await, ["relay_state 1"]);
    drop((keeper, hold));
    for _ in 0..2 {
        world.keeper().0.recover().await.unwrap();
        assert_eq!(world.told().await, ["relay_state 1", "relay_state 0 the server stopped"]);
    }
}

#[tokio::test]
async fn a_relay_whose_task_has_failed_rests_before_it_is_started_again() {
    let world = World::new().await;
    let (mut keeper, _asked) = world.keeper();
    world.put_rule("s").await;
    let _hold = keeper.publish(world.arrival("s", "")).await.unwrap();
    assert_eq!(keeper.relays.len(), 1);
    let begun = Instant::now();
    keeper.running.abort_all();
    let ended = keeper.running.join_next_with_id().await.unwrap();
    keeper.task_ended(ended);
    keeper.on_time();
    keeper.write_all().await;
    keeper.read_inbox();
    keeper.take_turn().await;
    assert_eq!(world.told().await, ["relay_state 0 internal error"]);
    assert!(keeper.relays.is_empty() && world.live.relays().is_empty());
    assert!(keeper.next_deadline() >= Some(begun + REST));
    keeper.resting.values_mut().for_each(|at| *at = begun);
    keeper.on_time();
    keeper.take_turn().await;
    assert_eq!(keeper.relays.len(), 1);
    assert!(keeper.resting.is_empty());
}

#[tokio::test]
async fn a_publisher_that_takes_a_stream_over_within_the_grace_is_told_as_itself() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let (plan, _running) = world.start();
    let alice = plan.publish(world.arrival("s", "alice")).await.unwrap();
    alice.began(0);
    world.wait_told(&["stream_create alice 0"]).await;
    alice.leave(Leave::Lost);
    let address = "127.0.0.1:6000".parse().unwrap();
    let bob = Arrival { protocol: "WHIP", address, ..world.arrival("s", "bob") };
    let bob = plan.publish(bob).await.unwrap();
    bob.began(0);
    world.wait_told(&["stream_create alice 0", "stream_create bob 1"]).await;
    let shown = world.live.stream(&key("s")).unwrap().publisher();
    assert_eq!((shown.protocol, shown.address.as_str()), ("WHIP", "127.0.0.1:6000"));
    let row = world.store.read().await.unwrap().stream(&key("s")).await.unwrap().unwrap();
    assert_eq!((row.user_id, row.protocol, row.publisher), ("bob".into(), "WHIP".into(), "127.0.0.1:6000".into()));
    bob.leave(Leave::Finished);
    world.wait_told(&["stream_create alice 0", "stream_create bob 1", "stream_close bob 0"]).await;
}

#[tokio::test]
async fn who_comes_back_without_media_takes_nothing_from_the_grace() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let (mut keeper, _asked) = world.keeper();
    let alice = keeper.publish(world.arrival("s", "alice")).await.unwrap();
    let ends_at = |keeper: &Keeper| keeper.places.get(&key("s")).map(|place| place.ends_at);
    alice.leave(Leave::Silent);
    keeper.read_inbox();
    let waits = ends_at(&keeper).expect("it waits");
    for _ in 0..2 {
        let absent = keeper.publish(world.arrival("s", "alice")).await.unwrap();
        assert_eq!(ends_at(&keeper), Some(None));
        absent.leave(Leave::Absent);
        keeper.read_inbox();
        assert_eq!(ends_at(&keeper), Some(waits));
    }
    assert!(keeper.places[&key("s")].close == Close::Heartbeat, "it is told of who was there");
    // A stream that never was ends at once.
    keeper.publish(world.arrival("t", "bob")).await.unwrap().leave(Leave::Absent);
    keeper.read_inbox();
    assert!(!keeper.places.contains_key(&key("t")));
}

#[tokio::test]
async fn a_stream_ends_with_its_app_and_with_its_environment() {
    let world = World::new().await;
    let (mut keeper, _asked) = world.keeper();
    let hold = keeper.publish(world.arrival("s", "alice")).await.unwrap();
    let app = (*keeper.parts.apps.get(7).unwrap()).clone();
    keeper.end_strays();
    assert!(keeper.is_live(&key("s")));
    keeper.parts.apps.replace(vec![App { environment: config::Environment::Test, ..app.clone() }]);
    keeper.end_strays();
    assert!(!keeper.is_live(&key("s")) && hold.cut.is_cancelled());

    keeper.parts.apps.replace(vec![app.clone()]);
    let hold = keeper.publish(world.arrival("s", "alice")).await.unwrap();
    keeper.parts.apps.replace(vec![App { id: 8, ..app }]);
    keeper.end_strays();
    assert!(!keeper.is_live(&key("s")) && hold.cut.is_cancelled());
}

#[tokio::test]
async fn a_stream_that_nobody_has_heard_of_does_not_come_back() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let (plan, _running) = world.start();
    plan.publish(world.arrival("s", "alice")).await.unwrap().leave(Leave::Lost);
    let bob = plan.publish(world.arrival("s", "bob")).await.unwrap();
    bob.began(0);
    world.wait_told(&["stream_create bob 0"]).await;
}

#[tokio::test]
async fn streams_and_their_relays_begin_and_end_while_the_store_stalls() {
    let world = World::new().await;
    let (plan, _running) = world.start();
    let alice = plan.publish(world.arrival("s", "alice")).await.unwrap();
    alice.began(0);
    world.put_rule("s").await;
    world.put_rule("t").await;
    world.wait_told(&["stream_create alice 0"]).await;

    let stalled = world.store.begin().await.unwrap();
    let begun = Instant::now();
    plan.wake(key("s"));
    wait("a relay begins", async || world.live.relays().len() == 1).await;
    alice.leave(Leave::Finished);
    let bob = plan.publish(world.arrival("s", "bob")).await.unwrap();
    bob.began(0);
    let other = plan.publish(world.arrival("t", "carol")).await.unwrap();
    other.began(0);
    wait("another relay begins", async || world.live.relays().iter().any(|((of, _), _)| *of == key("t"))).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
    assert_eq!(world.told().await, ["stream_create alice 0"]);
    drop(stalled);
    wait("all of it is told", async || {
        let told = world.told().await;
        let of = |word: &str| told.iter().position(|it| it == word);
        let (left, came, other) = (of("stream_close alice 0"), of("stream_create bob 0"), of("stream_create carol 0"));
        other.is_some() && left.is_some() && left < came
    })
    .await;
    let row = world.store.read().await.unwrap().stream(&key("s")).await.unwrap().unwrap();
    assert_eq!((row.user_id.as_str(), row.seq, row.closed_ms), ("bob", 2, 0));
}

#[tokio::test]
async fn what_a_stream_that_comes_and_goes_leaves_to_write_is_bounded() {
    let world = World::new().await;
    let (mut keeper, _asked) = world.keeper();
    set_full(&world.store, true).await;
    for n in 0..20 {
        let hold = keeper.publish(world.arrival("s", &n.to_string())).await.unwrap();
        hold.began(0);
        keeper.read_inbox();
        keeper.write_all().await;
        hold.leave(Leave::Finished);
        keeper.read_inbox();
        keeper.ledger.try_now();
        keeper.write_all().await;
    }
    assert_eq!((keeper.ending.len(), keeper.ledger.taken_over(&key("s"))), (ENDS, ENDS));
    set_full(&world.store, false).await;
    keeper.ledger.try_now();
    keeper.write_all().await;
    assert!(keeper.ledger.is_empty() && keeper.ending.is_empty());
    // The last ones have one session between them.
    let mut want = [0, 1].map(|n| [format!("stream_create {n} 0"), format!("stream_close {n} 0")]).concat();
    want.push("stream_create 2 0".into());
    want.extend([3, 4, 19].map(|n| format!("stream_create {n} 1")));
    want.push("stream_close 19 0".into());
    assert_eq!(world.told().await, want);
}

#[tokio::test]
async fn a_publisher_is_answered_once_its_stream_is_in_the_rows() {
    let world = World::new().await;
    world.default_everywhere();
    let (plan, _running) = world.start();
    for n in 0..20 {
        let id = n.to_string();
        let _hold = plan.publish(world.arrival(&id, "")).await.unwrap();
        let row = world.store.read().await.unwrap().stream(&key(&id)).await.unwrap();
        assert!(row.is_some_and(|row| !row.heard));
        assert_eq!(world.rule(&id).await.origin, Origin::Default);
    }
    let stalled = world.store.begin().await.unwrap();
    let begun = Instant::now();
    let _hold = plan.publish(world.arrival("stalled", "")).await.unwrap();
    assert!(begun.elapsed() >= PATIENCE && begun.elapsed() < 4 * PATIENCE, "{:?}", begun.elapsed());
    drop(stalled);
}

#[tokio::test]
async fn a_stream_that_comes_back_while_nothing_can_be_written_is_relayed_by_what_was_asked_for_it() {
    let world = World::new().await;
    world.default_everywhere();
    let (plan, _running) = world.start();
    world
        .change(async |tx| {
            let url = format!("{}/other", world.address("s"));
            tx.rule_put(&key("s"), &url, &Secret::new(&url), Origin::Api, 1).await
        })
        .await;
    let hold = plan.publish(world.arrival("s", "")).await.unwrap();
    wait("it is relayed", async || world.live.relays().len() == 2).await;
    set_full(&world.store, true).await;
    hold.leave(Leave::Finished);
    for _ in 0..2 * ENDS {
        let before = world.live.relays();
        let hold = plan.publish(world.arrival("s", "")).await.unwrap();
        let new = async || {
            let now = world.live.relays();
            now.len() == 2 && now.iter().zip(&before).all(|((_, new), (_, old))| !Arc::ptr_eq(new, old))
        };
        wait("it is relayed again", new).await;
        hold.leave(Leave::Finished);
    }
    let _new = plan.publish(world.arrival("t", "")).await.unwrap();
    wait("a new stream is relayed", async || world.live.relays().iter().any(|((of, _), _)| *of == key("t"))).await;
}

#[tokio::test]
async fn who_never_sent_a_thing_is_not_told_of_after_a_restart_either() {
    for began in [false, true] {
        let world = World::new().await;
        let (plan, running) = world.start();
        let hold = plan.publish(world.arrival("s", "u")).await.unwrap();
        if began {
            hold.began(0);
            world.wait_told(&["stream_create u 0"]).await;
        }
        running.abort();
        let (mut keeper, _asked) = world.keeper();
        keeper.recover().await.unwrap();
        keeper.on_time();
        keeper.write_all().await;
        assert!(keeper.ledger.is_empty() && keeper.places.is_empty());
        let want: &[&str] = if began { &["stream_create u 0", "stream_close u 4"] } else { &[] };
        assert_eq!(world.told().await, want);
    }
}

#[tokio::test]
async fn a_publisher_that_is_taken_over_before_it_could_be_told_of_is_told_of() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let (plan, _running) = world.start();
    let stalled = world.store.begin().await.unwrap();
    let alice = plan.publish(world.arrival("s", "alice")).await.unwrap();
    alice.began(0);
    alice.leave(Leave::Lost);
    let bob = plan.publish(world.arrival("s", "bob")).await.unwrap();
    bob.leave(Leave::Finished);
    wait("it ends", async || world.hub.get(&key("s")).is_none()).await;
    drop(stalled);
    world.wait_told(&["stream_create alice 0", "stream_close alice 0"]).await;
}

#[tokio::test]
async fn a_stream_is_forbidden_while_it_waits_for_its_publisher_after_a_restart() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let (plan, running) = world.start();
    let hold = plan.publish(world.arrival("s", "u")).await.unwrap();
    hold.began(0);
    world.wait_told(&["stream_create u 0"]).await;
    running.abort();
    let (mut keeper, asked) = world.keeper();
    keeper.recover().await.unwrap();
    let plan = keeper.plan.clone();
    let _running = tokio::spawn(keeper.run(asked));
    world.change(async |tx| tx.forbid_put(&key("s"), 1).await).await;
    plan.wake(key("s"));
    world.wait_told(&["stream_create u 0", "stream_close u 3"]).await;
}

#[tokio::test]
async fn a_default_target_that_changed_while_the_server_was_down_is_the_one_that_counts() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let old = format!("rtmp://{}/old", world.target.local_addr().unwrap());
    *world.cdn.lock().unwrap() =
        config::Cdn { relay_everything: true, default_target: Some(old), ..config::Cdn::default() };
    let (plan, running) = world.start();
    let _hold = plan.publish(world.arrival("s", "")).await.unwrap();
    running.abort();
    let fresh = World { hub: Arc::new(Hub::new(Arc::default(), 1 << 20)), live: Arc::default(), ..world };
    fresh.default_everywhere();
    let (mut keeper, asked) = fresh.keeper();
    keeper.recover().await.unwrap();
    let plan = keeper.plan.clone();
    let _running = tokio::spawn(keeper.run(asked));
    let _hold = plan.publish(fresh.arrival("s", "")).await.unwrap();
    let address = fresh.address("s");
    wait("it goes to the new one", async || {
        let relays = fresh.live.relays();
        relays.len() == 1 && relays[0].0.1 == address
    })
    .await;
    let rules = fresh.store.read().await.unwrap().rules_of(&key("s")).await.unwrap();
    assert_eq!(rules.into_iter().map(|rule| rule.address).collect::<Vec<_>>(), [address]);
}

#[tokio::test]
async fn what_publishers_that_take_each_other_over_leave_to_write_is_bounded() {
    let world = World::new().await;
    world.grace.store(Arc::new(Duration::from_secs(3600)));
    let (mut keeper, _asked) = world.keeper();
    set_full(&world.store, true).await;
    for n in 0..20 {
        let hold = keeper.publish(world.arrival("s", &n.to_string())).await.unwrap();
        hold.began(0);
        keeper.read_inbox();
        // Every other one is on its way when it is taken over.
        keeper.ledger.try_now();
        if n % 2 == 0 {
            keeper.write_all().await;
        } else {
            keeper.write_down();
        }
        hold.leave(Leave::Lost);
        keeper.read_inbox();
    }
    keeper.write_all().await;
    assert!(keeper.ledger.taken_over(&key("s")) <= ENDS + 1);
    set_full(&world.store, false).await;
    keeper.ledger.try_now();
    keeper.write_all().await;
    let told = world.told().await;
    assert_eq!((told[0].as_str(), told.last().unwrap().as_str()), ("stream_create 0 0", "stream_create 19 1"));
    assert!(told.len() <= ENDS + 2 && told[1..].iter().all(|it| it.ends_with(" 1")), "{told:?}");
}
