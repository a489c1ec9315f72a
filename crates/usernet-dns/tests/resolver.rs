//! The resolver as a guest sees it, before upstreams of the test's own.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

mod upstream;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, NULL, PTR, SVCB, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use usernet_dns::{Config, Resolver, Transport};

use crate::upstream::{Upstream, name, negative, reply};

fn config(upstreams: &[&Upstream]) -> Config {
    Config {
        upstreams: upstreams.iter().map(|upstream| upstream.address).collect(),
        hosts: "/nonexistent/hosts".into(),
        resolv_conf: "/nonexistent/resolv.conf".into(),
        ..Config::default()
    }
}

fn resolver(upstreams: &[&Upstream]) -> Resolver {
    Resolver::new(config(upstreams)).unwrap()
}

fn query(of: &str, kind: RecordType) -> Message {
    let mut query = Message::new(0x1234, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(of), kind));
    query
}

fn with_edns(mut query: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    query.edns = Some(edns);
    query
}

async fn ask(resolver: &Resolver, query: &Message) -> Message {
    ask_over(resolver, query, Transport::Udp).await
}

async fn ask_over(resolver: &Resolver, query: &Message, transport: Transport) -> Message {
    let answer = resolver.answer(&query.to_vec().unwrap(), transport).await.expect("an answer");
    Message::from_vec(&answer).unwrap()
}

fn a(of: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A::new(192, 0, 2, last)))
}

fn aaaa(address: &str) -> RData {
    RData::AAAA(AAAA(address.parse().unwrap()))
}

fn data(answer: &Message) -> Vec<RData> {
    answer.answers.iter().map(|record| record.data.clone()).collect()
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

/// Runs `attempt` until it holds; fails after ten seconds.
async fn eventually<F: Future<Output = bool>>(mut attempt: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !attempt().await {
        assert!(Instant::now() < deadline, "did not come true in time");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn every_record_type_passes() {
    let unknown =
        |bytes: &[u8]| RData::Unknown { code: RecordType::Unknown(65280), rdata: NULL::with(bytes.to_vec()) };
    let all = [
        RData::A(A::new(192, 0, 2, 1)),
        RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        RData::TXT(TXT::new(vec!["hello".into()])),
        RData::HTTPS(HTTPS(SVCB::new(1, name("svc.test."), Vec::new()))),
        unknown(b"\0\x01anything"),
    ];
    let said = all.clone();
    let upstream = Upstream::start(move |query, _| {
        let asked = query.queries[0].query_type();
        let data = said.iter().find(|data| data.record_type() == asked)?.clone();
        reply(query, [Record::from_rdata(query.queries[0].name().clone(), 60, data)]).to_vec().ok()
    })
    .await;
    let resolver = resolver(&[&upstream]);
    for said in all {
        let answer = ask(&resolver, &query("any.test.", said.record_type())).await;
        assert_eq!((code(&answer), data(&answer)), (ResponseCode::NoError, vec![said]));
    }
}

#[tokio::test]
async fn guest_sees_its_own_id_and_case_and_the_upstream_neither() {
    let upstream = Upstream::start(|query, _| reply(query, [a("host.test.", 60, 1)]).to_vec().ok()).await;
    let mut ids = Vec::new();
    for asked in ["hOsT.tEsT.", "HOST.test.", "host.test."] {
        // A resolver each, so that nothing comes from the cache.
        let answer = ask(&resolver(&[&upstream]), &query(asked, RecordType::A)).await;
        assert_eq!(answer.metadata.id, 0x1234);
        assert!(answer.queries[0].name().eq_case(&name(asked)));
        assert_eq!(data(&answer), [RData::A(A::new(192, 0, 2, 1))]);
    }
    for (query, _) in upstream.asked() {
        assert!(query.queries[0].name().eq_case(&name("host.test.")));
        ids.push(query.metadata.id);
    }
    ids.dedup();
    assert!(ids != [0x1234] && ids.len() > 1, "{ids:x?}");
}

#[tokio::test]
async fn dnssec_and_checking_bits_go_up_and_edns_comes_back() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = reply(query, [a("host.test.", 60, 1)]);
        reply.metadata.authentic_data = true;
        reply.metadata.checking_disabled = query.metadata.checking_disabled;
        reply.to_vec().ok()
    })
    .await;
    let resolver = resolver(&[&upstream]);
    let mut asked = with_edns(query("host.test.", RecordType::A), 4096, true);
    asked.metadata.checking_disabled = true;
    let answer = ask(&resolver, &asked).await;
    let edns = answer.edns.as_ref().expect("an OPT record");
    assert!(edns.flags().dnssec_ok && edns.max_payload() == 1232 && edns.version() == 0);
    assert!(answer.metadata.checking_disabled && answer.metadata.authentic_data);

    // Who asks for less gets an answer of its own.
    let plain = ask(&resolver, &query("host.test.", RecordType::A)).await;
    assert!(plain.edns.is_none() && !plain.metadata.checking_disabled);

    let [(first, _), (second, _)] = upstream.asked().try_into().unwrap();
    assert!(first.metadata.checking_disabled && first.metadata.recursion_desired);
    assert!(first.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
    assert!(second.edns.is_none() && !second.metadata.checking_disabled);
}

#[tokio::test]
async fn cname_chain_comes_whole_also_when_it_leads_nowhere() {
    let upstream = Upstream::start(|query, _| {
        let alias = |from: &str, to: &str| Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))));
        let chain = [alias("www.test.", "cdn.test."), alias("cdn.test.", "host.test.")];
        match query.queries[0].query_type() {
            RecordType::A => reply(query, chain.into_iter().chain([a("host.test.", 60, 1)])).to_vec().ok(),
            _ => {
                let mut reply = negative(query, ResponseCode::NXDomain, 30);
                reply.add_answers(chain).metadata.authentic_data = true;
                reply.to_vec().ok()
            }
        }
    })
    .await;
    let resolver = resolver(&[&upstream]);
    let answer = ask(&resolver, &query("www.test.", RecordType::A)).await;
    let kinds: Vec<_> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::CNAME, RecordType::A]);

    let nowhere = ask(&resolver, &query("www.test.", RecordType::AAAA)).await;
    assert_eq!((code(&nowhere), nowhere.answers.len()), (ResponseCode::NXDomain, 2));
    assert!(nowhere.metadata.authentic_data && nowhere.authorities[0].record_type() == RecordType::SOA);
}

#[tokio::test]
async fn negative_answers_carry_their_soa_and_are_kept_for_its_minimum() {
    let upstream = Upstream::start(|query, _| {
        let code = match query.queries[0].name().to_ascii().as_str() {
            "gone.test." => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        };
        negative(query, code, 30).to_vec().ok()
    })
    .await;
    let resolver = resolver(&[&upstream]);
    for (of, expected) in [("gone.test.", ResponseCode::NXDomain), ("empty.test.", ResponseCode::NoError)] {
        for _ in 0..2 {
            let answer = ask(&resolver, &query(of, RecordType::AAAA)).await;
            assert_eq!((code(&answer), answer.answers.len()), (expected, 0));
            let [soa] = answer.authorities.as_slice() else { panic!("one SOA") };
            assert_eq!(soa.record_type(), RecordType::SOA);
            assert!((1..=30).contains(&soa.ttl), "TTL {}", soa.ttl);
        }
    }
    assert_eq!((upstream.asked().len(), resolver.stats().cache_hits), (2, 2));
}

#[tokio::test]
async fn large_answer_is_fetched_over_tcp_and_given_over_tcp() {
    let upstream = Upstream::start(|query, transport| {
        let mut reply = reply(query, (0..200).map(|last| a("big.test.", 60, last)));
        if transport == Transport::Udp {
            reply = reply.truncate();
        }
        reply.to_vec().ok()
    })
    .await;
    let resolver = resolver(&[&upstream]);
    for asked in [
        query("big.test.", RecordType::A),
        with_edns(query("big.test.", RecordType::A), 65_535, false),
        with_edns(query("big.test.", RecordType::A), 0, false),
    ] {
        let bytes = resolver.answer(&asked.to_vec().unwrap(), Transport::Udp).await.unwrap();
        assert!(bytes.len() <= 512);
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries == asked.queries);
        assert_eq!(cut.edns.is_some(), asked.edns.is_some());

        let whole = ask_over(&resolver, &asked, Transport::Tcp).await;
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 200);
    }
    let over: Vec<_> = upstream.asked().into_iter().map(|(_, transport)| transport).collect();
    assert_eq!(over[..2], [Transport::Udp, Transport::Tcp]);
}

#[tokio::test]
async fn answer_between_512_and_1232_bytes_fits_a_guest_that_says_so() {
    let upstream =
        Upstream::start(|query, _| reply(query, (0..50).map(|last| a("mid.test.", 60, last))).to_vec().ok())
            .await;
    let resolver = resolver(&[&upstream]);
    let fits = ask(&resolver, &with_edns(query("mid.test.", RecordType::A), 1232, false)).await;
    assert_eq!((fits.metadata.truncation, fits.answers.len()), (false, 50));
    let small = ask(&resolver, &with_edns(query("mid.test.", RecordType::A), 600, false)).await;
    assert_eq!((small.metadata.truncation, small.answers.len()), (true, 0));
}

#[tokio::test]
async fn two_who_ask_the_same_share_one_query() {
    let (open, opened) = std::sync::mpsc::channel::<()>();
    let opened = std::sync::Mutex::new(opened);
    let upstream = Upstream::start(move |query, _| {
        // Answers once both wait.
        match opened.lock().unwrap().try_recv() {
            Ok(()) => reply(query, [a("host.test.", 0, 1)]).to_vec().ok(),
            Err(_) => None,
        }
    })
    .await;
    let resolver = resolver(&[&upstream]);
    let mut other = query("HOST.test.", RecordType::A);
    other.metadata.id = 0x4321;
    let ours = query("host.TEST.", RecordType::A);
    let (first, second, ()) = tokio::join!(ask(&resolver, &ours), ask(&resolver, &other), async {
        eventually(|| async { !upstream.asked().is_empty() }).await;
        open.send(()).unwrap(); // the first datagram went unanswered: the second round is
    });
    assert!(first.metadata.id == 0x1234 && first.queries[0].name().eq_case(&name("host.TEST.")));
    assert!(second.metadata.id == 0x4321 && second.queries[0].name().eq_case(&name("HOST.test.")));
    assert_eq!((data(&first).len(), data(&second).len()), (1, 1));
    assert_eq!(upstream.asked().len(), 2, "one lookup, its datagram sent again once");
}

#[tokio::test]
async fn the_one_who_waits_on_is_answered_when_the_first_goes_away() {
    let upstream = Upstream::start(|query, transport| match transport {
        Transport::Udp => reply(query, [a("host.test.", 60, 1)]).to_vec().ok(),
        Transport::Tcp => None,
    })
    .await;
    let resolver = resolver(&[&upstream]);
    let asked = query("host.test.", RecordType::A).to_vec().unwrap();
    let mut first = Box::pin(resolver.answer(&asked, Transport::Udp));
    let mut second = Box::pin(resolver.answer(&asked, Transport::Udp));
    // Both are on the list, the first of them asking.
    for waiting in [&mut first, &mut second] {
        std::future::poll_fn(|context| {
            assert!(waiting.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
    }
    drop(first);
    let answer = Message::from_vec(&second.await.unwrap()).unwrap();
    assert_eq!(data(&answer).len(), 1);
}

#[tokio::test]
async fn kept_answers_count_down_and_end() {
    let upstream = Upstream::start(|query, _| reply(query, [a("host.test.", 3, 1)]).to_vec().ok()).await;
    let resolver = resolver(&[&upstream]);
    let asked = query("host.test.", RecordType::A);
    assert_eq!(ask(&resolver, &asked).await.answers[0].ttl, 3);
    eventually(|| async { ask(&resolver, &asked).await.answers[0].ttl < 3 }).await;
    assert_eq!(upstream.asked().len(), 1);
    eventually(|| async { ask(&resolver, &asked).await.answers[0].ttl == 3 }).await;
    assert_eq!(upstream.asked().len(), 2);
    assert!(resolver.stats().cache_hits > 0);
}

#[tokio::test]
async fn silent_upstream_gives_servfail_in_time() {
    let upstream = Upstream::start(|_, _| None).await;
    let timeout = Duration::from_millis(300);
    let resolver = Resolver::new(Config { timeout, ..config(&[&upstream]) }).unwrap();
    let began = Instant::now();
    let answer = ask(&resolver, &with_edns(query("host.test.", RecordType::A), 1232, false)).await;
    assert_eq!(code(&answer), ResponseCode::ServFail);
    assert!(answer.edns.is_some() && answer.queries[0].name() == &name("host.test."));
    assert!((timeout..timeout + Duration::from_secs(2)).contains(&began.elapsed()));
    assert_eq!(resolver.stats().upstream_failures, 1);
}

#[tokio::test]
async fn unreachable_upstream_gives_servfail_at_once() {
    let upstream = Upstream::start(|_, _| None).await;
    let config = Config { timeout: Duration::from_secs(60), ..config(&[&upstream]) };
    drop(upstream);
    let resolver = Resolver::new(config).unwrap();
    let asked = query("host.test.", RecordType::A);
    // The port closes when the runtime gets to it; until then the server is silent, and asked once more.
    let answer = tokio::time::timeout(Duration::from_secs(20), ask(&resolver, &asked)).await.unwrap();
    assert_eq!(code(&answer), ResponseCode::ServFail);
}

#[tokio::test]
async fn second_upstream_takes_over_from_one_that_is_silent_or_refuses() {
    let answering = Upstream::start(|query, _| reply(query, [a("host.test.", 60, 2)]).to_vec().ok()).await;
    for refusal in
        [None, Some(ResponseCode::ServFail), Some(ResponseCode::Refused), Some(ResponseCode::NotImp)]
    {
        let failing = Upstream::start(move |query, _| {
            let mut reply = reply(query, []);
            reply.metadata.response_code = refusal?;
            reply.to_vec().ok()
        })
        .await;
        let resolver = resolver(&[&failing, &answering]);
        let answer = ask(&resolver, &query("host.test.", RecordType::A)).await;
        assert_eq!(data(&answer), [RData::A(A::new(192, 0, 2, 2))], "{refusal:?}");
        assert_eq!(failing.asked().len(), 1);
        // One that was silent is not waited for again soon; one that refused is asked first again.
        ask(&resolver, &query("other.test.", RecordType::A)).await;
        assert_eq!(failing.asked().len(), if refusal.is_none() { 1 } else { 2 }, "{refusal:?}");
    }
}

#[tokio::test]
async fn refusal_of_the_only_upstream_is_passed_on_and_not_kept() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = reply(query, []);
        reply.metadata.response_code = ResponseCode::Refused;
        reply.to_vec().ok()
    })
    .await;
    let resolver = resolver(&[&upstream]);
    for times in 1..=2 {
        assert_eq!(code(&ask(&resolver, &query("host.test.", RecordType::A)).await), ResponseCode::Refused);
        assert_eq!(upstream.asked().len(), times);
    }
}

#[tokio::test]
async fn answer_to_another_question_or_id_is_not_believed() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = reply(query, [a("host.test.", 60, 66)]);
        match query.queries[0].query_type() {
            RecordType::A => reply.metadata.id ^= 1,
            _ => reply.queries = vec![Query::query(name("other.test."), RecordType::AAAA)],
        }
        reply.to_vec().ok()
    })
    .await;
    let timeout = Duration::from_millis(200);
    let resolver = Resolver::new(Config { timeout, ..config(&[&upstream]) }).unwrap();
    for kind in [RecordType::A, RecordType::AAAA] {
        let answer = ask(&resolver, &query("host.test.", kind)).await;
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::ServFail, 0));
    }
}

#[tokio::test]
async fn malformed_upstream_answers_are_survived() {
    let upstream = Upstream::start(|query, _| {
        let whole = negative(query, ResponseCode::NoError, 30).to_vec().ok()?;
        // The name says by how much the answer is cut.
        let cut: usize = query.queries[0]
            .name()
            .iter()
            .next()
            .map(|label| str::from_utf8(label).unwrap().parse().unwrap())?;
        whole.get(..whole.len() - cut).map(<[u8]>::to_vec)
    })
    .await;
    let timeout = Duration::from_millis(50);
    let resolver = Resolver::new(Config { timeout, ..config(&[&upstream]) }).unwrap();
    for cut in 1..70 {
        let answer = ask(&resolver, &query(&format!("{cut}.test."), RecordType::A)).await;
        assert_eq!(code(&answer), ResponseCode::ServFail, "cut by {cut}");
    }
}

#[tokio::test]
async fn messages_that_are_no_queries() {
    let upstream = Upstream::start(|_, _| None).await;
    let resolver = resolver(&[&upstream]);
    let good = query("host.test.", RecordType::A).to_vec().unwrap();
    let udp = Transport::Udp;

    assert_eq!(resolver.answer(&good[..11], udp).await, None);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(resolver.answer(&response, udp).await, None);

    let mut pointer = good[..12].to_vec();
    pointer.extend([0xc0, 4, 0, 1, 0, 1]);
    let mut two_questions = query("host.test.", RecordType::A);
    two_questions.add_query(Query::query(name("host.test."), RecordType::AAAA));
    for malformed in [&good[..good.len() - 1], &good[..12], &pointer, &two_questions.to_vec().unwrap()] {
        let answer = Message::from_vec(&resolver.answer(malformed, udp).await.unwrap()).unwrap();
        assert_eq!((code(&answer), answer.metadata.id), (ResponseCode::FormErr, 0x1234));
        assert_eq!(answer.metadata.message_type, MessageType::Response);
    }

    let mut notify = query("host.test.", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    let answer = ask(&resolver, &notify).await;
    assert_eq!((code(&answer), answer.metadata.op_code), (ResponseCode::NotImp, OpCode::Notify));

    let mut newer = with_edns(query("host.test.", RecordType::A), 1232, false);
    newer.edns.as_mut().unwrap().set_version(1);
    let answer = ask(&resolver, &newer).await;
    assert_eq!((u16::from(code(&answer)), answer.edns.unwrap().version()), (16, 0));
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn too_many_at_once_are_turned_away_and_counted() {
    let upstream = Upstream::start(|_, _| None).await;
    let resolver =
        Resolver::new(Config { max_in_flight: 1, timeout: Duration::from_secs(2), ..config(&[&upstream]) })
            .unwrap();
    let (waiting, asked) = (query("one.test.", RecordType::A), query("two.test.", RecordType::A));
    tokio::join!(ask(&resolver, &waiting), async {
        eventually(|| async { !upstream.asked().is_empty() }).await;
        assert_eq!(code(&ask(&resolver, &asked).await), ResponseCode::ServFail);
        assert_eq!(resolver.stats().refused, 1);
        // What is known here needs no upstream.
        assert_eq!(code(&ask(&resolver, &query("localhost.", RecordType::A)).await), ResponseCode::NoError);
    });
    let asked = upstream.asked();
    assert!(asked.iter().all(|(query, _)| query.queries[0].name() == &name("one.test.")));
}

#[tokio::test]
async fn resolv_conf_is_followed() {
    let [old, new] = [1, 2].map(|last| {
        Upstream::start(move |query, _| reply(query, [a("host.test.", 600, last)]).to_vec().ok())
    });
    let (old, new) = (old.await, new.await);
    let line = |server: SocketAddr| {
        format!("# a comment\nsearch test\nnameserver [{}]:{}\n", server.ip(), server.port())
    };
    let folder = tempfile::tempdir().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, line(old.address)).unwrap();
    let resolver = Resolver::new(Config { resolv_conf: resolv_conf.clone(), ..config(&[]) }).unwrap();
    let asked = query("host.test.", RecordType::A);
    assert_eq!(data(&ask(&resolver, &asked).await), [RData::A(A::new(192, 0, 2, 1))]);

    // As most programs replace it; what the old server said is forgotten with it.
    std::fs::write(folder.path().join("new"), line(new.address)).unwrap();
    std::fs::rename(folder.path().join("new"), &resolv_conf).unwrap();
    eventually(|| async { data(&ask(&resolver, &asked).await) == [RData::A(A::new(192, 0, 2, 2))] }).await;

    // While it is away, what it said holds.
    std::fs::remove_file(&resolv_conf).unwrap();
    assert_eq!(code(&ask(&resolver, &asked).await), ResponseCode::NoError);
}

#[tokio::test]
async fn hosts_file_is_honoured_and_followed() {
    let upstream = Upstream::start(|query, _| negative(query, ResponseCode::NXDomain, 1).to_vec().ok()).await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(
        &hosts,
        "198.51.100.7 printer.lan Printer # comment\n127.0.1.1 myhost\n::1 myhost\nnonsense x\n",
    )
    .unwrap();
    let resolver = Resolver::new(Config { hosts: hosts.clone(), ..config(&[&upstream]) }).unwrap();

    for of in ["printer.lan.", "PRINTER."] {
        let answer = ask(&resolver, &query(of, RecordType::A)).await;
        assert_eq!(data(&answer), [RData::A(A::new(198, 51, 100, 7))]);
        assert!(answer.metadata.authoritative);
        let lacking = ask(&resolver, &query(of, RecordType::AAAA)).await;
        assert_eq!((code(&lacking), lacking.answers.len()), (ResponseCode::NoError, 0));
    }
    let back = ask(&resolver, &query("7.100.51.198.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(data(&back), [RData::PTR(PTR(name("printer.lan.")))]);
    // The host's loopback is at the gateway.
    assert_eq!(
        data(&ask(&resolver, &query("myhost.", RecordType::A)).await),
        [RData::A(A::new(10, 0, 2, 2))]
    );
    assert_eq!(data(&ask(&resolver, &query("myhost.", RecordType::AAAA)).await), [aaaa("fd00::2")]);
    assert!(upstream.asked().is_empty());

    std::fs::write(&hosts, "198.51.100.8 printer.lan\n").unwrap();
    let asked = query("printer.lan.", RecordType::A);
    eventually(|| async { data(&ask(&resolver, &asked).await) == [RData::A(A::new(198, 51, 100, 8))] }).await;
    assert_eq!(code(&ask(&resolver, &query("myhost.", RecordType::A)).await), ResponseCode::NXDomain);
}

#[tokio::test]
async fn local_names() {
    let upstream = Upstream::start(|_, _| None).await;
    let resolver = resolver(&[&upstream]);
    let guest = IpAddr::from(Ipv4Addr::new(10, 0, 2, 15));
    resolver.set_names(vec![
        ("vm.example.com".into(), guest),
        ("vm".into(), Ipv4Addr::new(10, 0, 2, 16).into()),
        ("vm".into(), "fd00::15".parse().unwrap()),
        ("gateway".into(), guest),
        ("not a name".into(), guest),
        (String::new(), guest),
    ]);
    let data_of = async |of: &str, kind| data(&ask(&resolver, &query(of, kind)).await);

    assert_eq!(data_of("Gateway.usernet.internal.", RecordType::A).await, [RData::A(A::new(10, 0, 2, 2))]);
    assert_eq!(data_of("gateway.usernet.internal.", RecordType::AAAA).await, [aaaa("fd00::2")]);
    assert_eq!(data_of("vm.usernet.internal.", RecordType::A).await, [RData::A(A::new(10, 0, 2, 15))]);
    assert_eq!(data_of("vm.usernet.internal.", RecordType::AAAA).await.len(), 1);
    assert_eq!(data_of("localhost.", RecordType::A).await, [RData::A(A::new(127, 0, 0, 1))]);
    assert_eq!(data_of("a.localhost.", RecordType::AAAA).await.len(), 1);
    for (arpa, expected) in [
        ("2.2.0.10.in-addr.arpa.", "gateway.usernet.internal."),
        ("15.2.0.10.in-addr.arpa.", "vm.usernet.internal."),
        ("1.0.0.127.in-addr.arpa.", "localhost."),
        (&arpa("fd00::2"), "gateway.usernet.internal."),
        (&arpa("fd00::15"), "vm.usernet.internal."),
        (&arpa("::1"), "localhost."),
    ] {
        assert_eq!(data_of(arpa, RecordType::PTR).await, [RData::PTR(PTR(name(expected)))]);
    }

    // Types that they lack: the name exists all the same.
    for of in ["gateway.usernet.internal.", "usernet.internal."] {
        let answer = ask(&resolver, &query(of, RecordType::MX)).await;
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0));
        assert!(answer.metadata.authoritative && answer.authorities[0].record_type() == RecordType::SOA);
    }
    let mut chaos = query("gateway.usernet.internal.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert!(data(&ask(&resolver, &chaos).await).is_empty());
    for of in ["nobody.usernet.internal.", "x.gateway.usernet.internal.", "16.vm.usernet.internal."] {
        let answer = ask(&resolver, &query(of, RecordType::A)).await;
        assert_eq!(code(&answer), ResponseCode::NXDomain, "{of}");
        assert!(answer.metadata.authoritative && answer.authorities[0].record_type() == RecordType::SOA);
    }

    assert!(upstream.asked().is_empty());

    resolver.set_names(Vec::new());
    assert_eq!(
        code(&ask(&resolver, &query("vm.usernet.internal.", RecordType::A)).await),
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn a_network_of_one_kind_of_ip_has_names_of_that_kind() {
    let upstream = Upstream::start(|_, _| None).await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.1.1 four\n::1 six\n").unwrap();
    let both = Config { hosts, ..config(&[&upstream]) };
    let (v4, v6) = (RData::A(A::new(10, 0, 2, 2)), aaaa("fd00::2"));
    for (config, has, lacks, only) in [
        (Config { gateway6: None, ..both.clone() }, RecordType::A, RecordType::AAAA, v4),
        (Config { gateway: None, ..both.clone() }, RecordType::AAAA, RecordType::A, v6),
    ] {
        let resolver = Resolver::new(config).unwrap();
        // Where the host is only reached one way, a name for its loopback leads there.
        for of in ["gateway.usernet.internal.", "four.", "six."] {
            assert_eq!(data(&ask(&resolver, &query(of, has)).await), std::slice::from_ref(&only), "{of}");
            let answer = ask(&resolver, &query(of, lacks)).await;
            assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0), "{of} {lacks}");
        }
    }
    assert!(upstream.asked().is_empty());
}

#[test]
fn zone_must_be_a_name() {
    for zone in ["", ".", "a..b"] {
        assert!(Resolver::new(Config { zone: zone.into(), ..Config::default() }).is_err(), "{zone:?}");
    }
}

/// The name of an address, for PTR.
fn arpa(address: &str) -> String {
    Name::from(address.parse::<IpAddr>().unwrap()).to_ascii()
}

/// A query behind its length.
fn framed(of: &str, id: u16) -> Vec<u8> {
    let mut query = query(of, RecordType::A);
    query.metadata.id = id;
    let query = query.to_vec().unwrap();
    [&u16::try_from(query.len()).unwrap().to_be_bytes(), query.as_slice()].concat()
}

/// All answers up to the end of the stream: ID, code, number of records.
async fn answers_of(mut guest: UnixStream) -> Vec<(u16, ResponseCode, usize)> {
    let mut seen = Vec::new();
    while let Ok(length) = guest.read_u16().await {
        let mut message = vec![0; length.into()];
        guest.read_exact(&mut message).await.unwrap();
        let message = Message::from_vec(&message).unwrap();
        seen.push((message.metadata.id, code(&message), message.answers.len()));
    }
    seen
}

#[tokio::test]
async fn stream_answers_pipelined_queries_as_they_are_found() {
    let upstream = Upstream::start(|query, _| match query.queries[0].name().to_ascii().as_str() {
        "slow.test." => None,
        _ => reply(query, (0..200).map(|last| a("big.test.", 60, last))).to_vec().ok(),
    })
    .await;
    let timeout = Duration::from_millis(800);
    let resolver = Resolver::new(Config { timeout, ..config(&[&upstream]) }).unwrap();
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(async move { resolver.serve_stream(ours).await });

    // The reader meets every byte alone, those of the length too.
    for byte in [framed("slow.test.", 1), framed("big.test.", 2)].concat() {
        guest.write_u8(byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    guest.shutdown().await.unwrap();
    assert_eq!(answers_of(guest).await, [(2, ResponseCode::NoError, 200), (1, ResponseCode::ServFail, 0)]);
    serving.await.unwrap();
}

#[tokio::test]
async fn stream_answers_more_queries_than_it_looks_up_at_once() {
    let upstream = Upstream::start(|query, _| {
        let asked = query.queries[0].name().clone();
        reply(query, [Record::from_rdata(asked, 60, RData::A(A::new(192, 0, 2, 1)))]).to_vec().ok()
    })
    .await;
    let resolver = Resolver::new(Config { max_in_flight: 16, ..config(&[&upstream]) }).unwrap();
    let (mut guest, ours) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(async move { resolver.serve_stream(ours).await });
    let all: Vec<_> = (0..100).flat_map(|id| framed(&format!("{id}.test."), id)).collect();
    guest.write_all(&all).await.unwrap();
    guest.shutdown().await.unwrap();
    let mut seen = answers_of(guest).await;
    seen.sort_by_key(|&(id, ..)| id);
    assert!(seen.iter().copied().eq((0..100).map(|id| (id, ResponseCode::NoError, 1))), "{seen:?}");
    serving.await.unwrap();
}
