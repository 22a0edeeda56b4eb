//! What a NATS server has to be, and what is kept on it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate::backplane::engine::{Engine, EngineError, Event, Retention, Stored};
use sluicegate::backplane::nats::{Credentials, NatsEngine, Settings};
use sluicegate::backplane::position::Region;
use sluicegate::backplane::sink::{SinkLimit, sink};

use super::contract::{connect_nats, nats_settings};
use super::faults::wait_for;
use super::nats_server::NatsServer;
use super::reader::Reader;
use super::{ALL, Wish, channel, eventually, item, publish, region, try_publish};

const INFO: &str = "STREAM.INFO.SLUICEGATE";

fn keeping(max_entries: usize) -> Wish {
    Wish { retention: Retention { max_entries, ..Retention::default() }, ..Wish::default() }
}

fn refused<T>(code: &str) -> Result<T, EngineError> {
    Err(EngineError::Refused { code: code.to_owned() })
}

async fn comes_to(settings: Settings, region: Region, status: Result<(), EngineError>) -> NatsEngine {
    let engine = NatsEngine::start(region, settings);
    eventually(&format!("{status:?}"), async || (engine.status() == status).then_some(())).await;
    engine
}

#[tokio::test]
async fn gateways_that_keep_more_and_less_do_not_fight() {
    let server = NatsServer::start(&[]);
    let less = connect_nats(vec![server.url()], keeping(5)).await;
    assert_eq!(server.api(INFO, &Value::Null)["config"]["max_msgs_per_subject"], 5);
    let more = connect_nats(vec![server.url()], keeping(50)).await;
    assert_eq!(server.api(INFO, &Value::Null)["config"]["max_msgs_per_subject"], 50);
    let again = connect_nats(vec![server.url()], keeping(5)).await;
    assert_eq!(server.api(INFO, &Value::Null)["config"]["max_msgs_per_subject"], 50, "limits are raised only");
    for nth in 1..=20 {
        publish(&less, "a", &format!("m{nth}")).await;
    }
    for (engine, first) in [(&less, 16), (&again, 16), (&more, 1)] {
        let slice = engine.read(&channel("a"), None, ALL).await.unwrap();
        assert_eq!((slice.log.first, slice.entries.len()), (first, 21 - first as usize));
    }
}

#[tokio::test]
async fn a_stream_of_somebody_else_or_another_region_is_refused_with_what_differs() {
    let server = NatsServer::start(&[]);
    let settings = nats_settings(vec![server.url()], Wish::default());
    let theirs = json!({ "name": "SLUICEGATE", "subjects": ["orders.>"], "description": "orders" });
    assert!(server.api("STREAM.CREATE.SLUICEGATE", &theirs)["error"].is_null());
    let engine = comes_to(settings.clone(), region(), refused("STREAM description")).await;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let error = try_publish(&engine, "a", "m1").await.unwrap_err();
    assert_eq!((error.stored, Err::<(), _>(error.reason)), (Stored::No, refused("STREAM description")));
    assert_eq!(server.api("STREAM.DELETE.SLUICEGATE", &Value::Null)["success"], true);
    eventually("it makes its own", async || engine.status().ok()).await;
    let us = Region::new("us").unwrap();
    comes_to(settings, us, Err(EngineError::WrongRegion { found: "eu".to_owned() })).await;
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let server = NatsServer::without_jetstream(&[]);
    let settings = nats_settings(vec![server.url()], Wish::default());
    comes_to(settings, region(), refused("NOJETSTREAM")).await;
}

#[tokio::test]
async fn a_server_asks_who_we_are() {
    let server = NatsServer::start(&["--user", "u", "--pass", "p"]);
    let settings = nats_settings(vec![server.url()], Wish::default());
    let with = |password: &str| Settings {
        credentials: Credentials { username: Some("u".to_owned()), password: Some(password.to_owned()) },
        ..settings.clone()
    };
    comes_to(with("p"), region(), Ok(())).await;
    comes_to(with("wrong"), region(), refused("AUTHORIZATION")).await;
    comes_to(settings.clone(), region(), refused("AUTHORIZATION")).await;
    let debug = format!("{:?}", with("secret-word"));
    assert!(!debug.contains("secret-word"), "{debug}");
}

#[tokio::test]
async fn a_user_who_may_not_hear_what_is_pushed_is_told_so_and_subscribes_to_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("nats.conf");
    let user = "{ user: u, password: p, permissions: { subscribe: { deny: \"sluicegate.p.c.secret\" } } }";
    std::fs::write(&file, format!("authorization {{ users: [{user}] }}\n")).expect("a file");
    let server = NatsServer::start(&["-c", &file.display().to_string()]);
    let credentials = Credentials { username: Some("u".to_owned()), password: Some("p".to_owned()) };
    let settings = Settings { credentials, ..nats_settings(vec![server.url()], Wish::default()) };
    let engine: Arc<dyn Engine> = Arc::new(comes_to(settings, region(), Ok(())).await);
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let (sink, _source) = sink(SinkLimit::default());
    // The server says so by the way, and maybe after it has answered.
    let _ = engine.subscribe(&channel("secret"), &sink).await;
    let down = wait_for(&mut events, "refused", |event| matches!(event, Event::Down(_))).await;
    assert_eq!(down, Event::Down(EngineError::Refused { code: "PERMISSIONS".to_owned() }));
    engine.unsubscribe(&channel("secret")).await;
    eventually("it goes on", async || try_publish(&engine, "a", "m1").await.ok()).await;
    reader.until("m1").await;
}

#[tokio::test]
async fn a_server_is_reached_over_tls_and_only_with_a_certificate_that_is_trusted() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let (cert_text, key_text) = (cert.display().to_string(), key.display().to_string());
    let server = NatsServer::start(&["--tls", "--tlscert", &cert_text, "--tlskey", &key_text]);
    let settings = nats_settings(vec![server.url().replace("nats:", "tls:")], Wish::default());
    let trusting = comes_to(Settings { ca_file: Some(cert), ..settings.clone() }, region(), Ok(())).await;
    let trusting: Arc<dyn Engine> = Arc::new(trusting);
    assert_eq!(publish(&trusting, "a", "m1").await.n, 1);
    let other = NatsEngine::start(region(), settings);
    let mut events = other.events();
    wait_for(&mut events, "not trusted", |event| matches!(event, Event::Down(_))).await;
    assert!(other.status().is_err());
}

#[tokio::test]
async fn what_is_too_old_or_too_much_is_dropped_and_the_newest_stays_for_its_number() {
    let server = NatsServer::start(&[]);
    let retention = Retention { max_age: Duration::from_secs(1), max_bytes: 3000, ..Retention::default() };
    let engine = connect_nats(vec![server.url()], Wish { retention, ..Wish::default() }).await;
    for nth in 0..20 {
        let position = engine.publish(&channel("a"), &item(&format!("m{nth}"), vec![0; 1000])).await.unwrap().position;
        assert_eq!(position.n, nth + 1);
    }
    publish(&engine, "b", "m").await;
    let messages = || server.api(INFO, &Value::Null)["state"]["messages"].as_u64().expect("a number");
    assert!(messages() > 20);
    // Two channels, and the heartbeat of the node.
    eventually("it is dropped", async || (messages() == 3).then_some(())).await;
    assert_eq!(publish(&engine, "a", "next").await.n, 21);
    assert_eq!(publish(&engine, "b", "next").await.n, 2);
}

#[tokio::test]
async fn a_repeated_message_that_is_dropped_already_is_not_stored_again() {
    let server = NatsServer::start(&[]);
    let engine = connect_nats(vec![server.url()], keeping(2)).await;
    let mut positions = Vec::new();
    for nth in 1..=5 {
        positions.push(publish(&engine, "a", &format!("m{nth}")).await);
    }
    let again = try_publish(&engine, "a", "m1").await.unwrap();
    assert_eq!((again.position, again.repeated), (positions[3].clone(), true), "the oldest that is left");
    assert_eq!(publish(&engine, "a", "m6").await.n, 6);
}

#[tokio::test]
async fn an_item_larger_than_the_server_takes_is_refused_and_the_engine_goes_on() {
    let server = NatsServer::start(&[]);
    let retention = Retention { max_bytes: 8 << 20, ..Retention::default() };
    let engine = connect_nats(vec![server.url()], Wish { retention, ..Wish::default() }).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let largest = 1_048_576 - 1280 - 1;
    let error = engine.publish(&channel("a"), &item("m", vec![7; largest + 1])).await.unwrap_err();
    let limit_bytes = largest + 1;
    assert_eq!(error.reason, EngineError::TooLarge { found_bytes: limit_bytes + 1, limit_bytes });
    assert_eq!(error.stored, Stored::No);
    let position = engine.publish(&channel("a"), &item("m", vec![7; largest])).await.unwrap().position;
    assert_eq!(position.n, 1);
    reader.until("m").await;
    assert_eq!(reader.got[0].payload.len(), largest);
}
