//! DNS64, as a guest without IPv4 sees it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

mod upstream;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use usernet_dns::{Config, Resolver, Transport};

use crate::upstream::{Upstream, name, negative, reply};

/// The host's IPv4 loopback: 10.0.2.2 behind the prefix.
const LOOPBACK: &str = "64:ff9b::a00:202";

fn config(upstream: &Upstream) -> Config {
    Config {
        upstreams: vec![upstream.address],
        gateway: None,
        dns64: Some(LOOPBACK.parse().unwrap()),
        hosts: "/nonexistent/hosts".into(),
        ..Config::default()
    }
}

fn resolver(upstream: &Upstream) -> Resolver {
    Resolver::new(config(upstream)).unwrap()
}

fn query(of: &str, kind: RecordType) -> Message {
    let mut query = Message::new(0x1234, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(of), kind));
    query
}

async fn ask(resolver: &Resolver, query: &Message, transport: Transport) -> Message {
    let answer = resolver.answer(&query.to_vec().unwrap(), transport).await.expect("an answer");
    Message::from_vec(&answer).unwrap()
}

/// The IPv6 addresses of a name, or what went wrong.
async fn look_up(resolver: &Resolver, of: &str) -> (ResponseCode, Vec<String>) {
    let answer = ask(resolver, &query(of, RecordType::AAAA), Transport::Udp).await;
    (answer.metadata.response_code, addresses(&answer))
}

fn addresses(answer: &Message) -> Vec<String> {
    let address = |record: &Record| match &record.data {
        RData::AAAA(address) => Some(address.0.to_string()),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}

fn a(of: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A(address.into())))
}

fn aaaa(of: &str, address: &str) -> Record {
    Record::from_rdata(name(of), 60, RData::AAAA(AAAA(address.parse().unwrap())))
}

fn alias(from: &str, to: &str) -> Record {
    Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))))
}

fn arpa(address: &str) -> Name {
    address.parse::<IpAddr>().unwrap().into()
}

/// Answers for A as told, and has nothing else of the name.
fn only_ipv4(query: &Message, records: impl IntoIterator<Item = Record>) -> Option<Vec<u8>> {
    match query.queries[0].query_type() {
        RecordType::A => reply(query, records).to_vec().ok(),
        _ => negative(query, ResponseCode::NoError, 30).to_vec().ok(),
    }
}

#[tokio::test]
async fn a_name_with_ipv4_addresses_alone_is_given_others() {
    let upstream = Upstream::start(|query, _| {
        let all = (1..=40).map(|last| a("host.test.", 600, [192, 0, 2, last]));
        only_ipv4(query, all.take(if query.queries[0].name() == &name("host.test.") { 2 } else { 40 }))
    })
    .await;
    let resolver = resolver(&upstream);
    for _ in 0..2 {
        let mut asked = query("HOST.test.", RecordType::AAAA);
        asked.edns = Some(Edns::new());
        let answer = ask(&resolver, &asked, Transport::Udp).await;
        assert_eq!(addresses(&answer), ["64:ff9b::c000:201", "64:ff9b::c000:202"]);
        assert!(answer.answers[0].name == name("host.test.") && answer.edns.is_some());
        // For no longer than it is known that there are no others (RFC 6147 §5.1.7).
        assert!(answer.answers.iter().all(|record| (1..=30).contains(&record.ttl)), "{answer}");
        assert!(answer.queries[0].name().eq_case(&name("HOST.test.")) && answer.metadata.id == 0x1234);
    }
    assert_eq!(upstream.asked().len(), 2, "once for each kind");
    // What IPv4 guests ask is what it was.
    let mut asked = query("host.test.", RecordType::A);
    asked.edns = Some(Edns::new());
    let answer = ask(&resolver, &asked, Transport::Udp).await;
    assert_eq!((answer.answers.len(), upstream.asked().len()), (2, 2));
    // What is too large for UDP is whole over TCP.
    let many = query("many.test.", RecordType::AAAA);
    assert!(ask(&resolver, &many, Transport::Udp).await.metadata.truncation);
    assert_eq!(addresses(&ask(&resolver, &many, Transport::Tcp).await).len(), 40);
}

#[tokio::test]
async fn a_name_with_ipv6_addresses_keeps_them() {
    let upstream = Upstream::start(|query, _| {
        let of = query.queries[0].name().to_ascii();
        let own = [aaaa(&of, "2001:db8::1"), aaaa(&of, "::ffff:192.0.2.9")];
        match (query.queries[0].query_type(), of.as_str()) {
            (RecordType::A, _) => reply(query, [a(&of, 60, [192, 0, 2, 1])]).to_vec().ok(),
            (_, "mapped.test.") => reply(query, own.into_iter().skip(1)).to_vec().ok(),
            (_, "both.test.") => reply(query, own).to_vec().ok(),
            _ => {
                let mut reply = reply(query, own.into_iter().take(1));
                reply.metadata.authentic_data = true;
                reply.to_vec().ok()
            }
        }
    })
    .await;
    let resolver = resolver(&upstream);
    let answer = ask(&resolver, &query("six.test.", RecordType::AAAA), Transport::Udp).await;
    assert_eq!(addresses(&answer), ["2001:db8::1"]);
    assert!(answer.metadata.authentic_data, "it is passed on as it came");
    // RFC 6147 §5.1.4: addresses that no packet has count for nothing.
    assert_eq!(look_up(&resolver, "both.test.").await.1, ["2001:db8::1"]);
    assert_eq!(look_up(&resolver, "mapped.test.").await.1, ["64:ff9b::c000:201"]);
}

#[tokio::test]
async fn an_alias_is_followed_to_addresses_made_up() {
    let upstream = Upstream::start(|query, _| {
        let mut chain = vec![alias("www.test.", "cdn.test."), alias("cdn.test.", "host.test.")];
        match query.queries[0].query_type() {
            RecordType::A => chain.push(a("host.test.", 20, [192, 0, 2, 1])),
            _ => {
                let mut reply = negative(query, ResponseCode::NoError, 30);
                reply.add_answers(chain);
                return reply.to_vec().ok();
            }
        }
        let mut reply = reply(query, chain);
        reply.metadata.authentic_data = true;
        reply.to_vec().ok()
    })
    .await;
    let answer = ask(&resolver(&upstream), &query("www.test.", RecordType::AAAA), Transport::Udp).await;
    let kinds: Vec<_> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::CNAME, RecordType::AAAA]);
    let last = &answer.answers[2];
    assert!(last.name == name("host.test.") && last.ttl <= 20 && !answer.metadata.authentic_data);
}

#[tokio::test]
async fn what_does_not_exist_stays_so_and_what_fails_is_tried_in_ipv4() {
    let upstream = Upstream::start(|query, _| {
        let of = query.queries[0].name().to_ascii();
        if query.queries[0].query_type() == RecordType::A {
            return match of.as_str() {
                "empty.test." => negative(query, ResponseCode::NoError, 30).to_vec().ok(),
                "here.test." => reply(query, [a(&of, 60, [127, 0, 0, 1]), a(&of, 60, [0; 4])]).to_vec().ok(),
                _ => reply(query, [a(&of, 900, [192, 0, 2, 1])]).to_vec().ok(),
            };
        }
        match of.as_str() {
            "gone.test." => negative(query, ResponseCode::NXDomain, 30).to_vec().ok(),
            "silent.test." => None,
            "fails.test." => {
                let mut reply = reply(query, []);
                reply.metadata.response_code = ResponseCode::ServFail;
                reply.to_vec().ok()
            }
            _ => negative(query, ResponseCode::NoError, 30).to_vec().ok(),
        }
    })
    .await;
    let timeout = Duration::from_millis(300);
    let resolver = Resolver::new(Config { timeout, ..config(&upstream) }).unwrap();
    let made_up = || vec!["64:ff9b::c000:201".to_owned()];
    for (of, code, expected) in [
        ("gone.test.", ResponseCode::NXDomain, vec![]),
        ("empty.test.", ResponseCode::NoError, vec![]),
        ("fails.test.", ResponseCode::NoError, made_up()),
        ("silent.test.", ResponseCode::NoError, made_up()),
        // A host of its own: no packet could be sent there.
        ("here.test.", ResponseCode::NoError, vec![]),
    ] {
        assert_eq!(look_up(&resolver, of).await, (code, expected), "{of}");
    }
    let answer = ask(&resolver, &query("fails.test.", RecordType::AAAA), Transport::Udp).await;
    assert_eq!(answer.answers[0].ttl, 600, "RFC 6147 §5.1.7");
    let nodata = ask(&resolver, &query("empty.test.", RecordType::AAAA), Transport::Udp).await;
    assert_eq!(nodata.authorities[0].record_type(), RecordType::SOA);
}

#[tokio::test]
async fn who_validates_is_told_no_stories() {
    let upstream = Upstream::start(|query, _| only_ipv4(query, [a("host.test.", 60, [192, 0, 2, 1])])).await;
    let resolver = resolver(&upstream);
    for (checking_disabled, dnssec_ok, expected) in [(true, true, 0), (false, true, 1), (true, false, 1)] {
        let mut asked = query("host.test.", RecordType::AAAA);
        asked.metadata.checking_disabled = checking_disabled;
        let mut edns = Edns::new();
        edns.set_dnssec_ok(dnssec_ok);
        asked.edns = Some(edns);
        let answer = ask(&resolver, &asked, Transport::Udp).await;
        assert_eq!(addresses(&answer).len(), expected, "{checking_disabled} {dnssec_ok}");
    }
}

#[tokio::test]
async fn a_made_up_address_leads_back_to_its_name() {
    let upstream = Upstream::start(|query, _| {
        let of = query.queries[0].name().clone();
        if of == arpa("192.0.2.1") {
            let names = [Record::from_rdata(of, 60, RData::PTR(PTR(name("host.test."))))];
            return reply(query, names).to_vec().ok();
        }
        negative(query, ResponseCode::NXDomain, 30).to_vec().ok()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.2 printer.lan\n").unwrap();
    let resolver = Resolver::new(Config { hosts, ..config(&upstream) }).unwrap();
    for (v4, v6, expected) in
        [("192.0.2.1", "64:ff9b::c000:201", "host.test."), ("192.0.2.2", "64:ff9b::c000:202", "printer.lan.")]
    {
        let answer = ask(&resolver, &query(&arpa(v6).to_ascii(), RecordType::PTR), Transport::Udp).await;
        let [alias, pointer] = &answer.answers[..] else { panic!("{answer}") };
        assert_eq!(alias.data, RData::CNAME(CNAME(arpa(v4))));
        assert_eq!((&pointer.name, &pointer.data), (&arpa(v4), &RData::PTR(PTR(name(expected)))));
    }
    let none = ask(&resolver, &query(&arpa("64:ff9b::1").to_ascii(), RecordType::PTR), Transport::Udp).await;
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NXDomain, 1));
    // Others are asked for as they are.
    ask(&resolver, &query(&arpa("2001:db8::1").to_ascii(), RecordType::PTR), Transport::Udp).await;
    assert_eq!(upstream.asked().last().unwrap().0.queries[0].name(), &arpa("2001:db8::1"));
}

#[tokio::test]
async fn names_of_the_host_and_of_the_prefix_are_answered_here() {
    let upstream = Upstream::start(|_, _| None).await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.2 printer.lan\n127.0.1.1 myhost\n192.0.2.3 dual\n2001:db8::3 dual\n")
        .unwrap();
    let alone = Config { hosts, ..config(&upstream) };
    let beside = Config { gateway: Some(Ipv4Addr::new(10, 0, 2, 2)), ..alone.clone() };
    for config in [alone, beside] {
        let resolver = Resolver::new(config).unwrap();
        resolver.set_names(vec![("vm".into(), Ipv4Addr::new(10, 0, 2, 15).into())]);
        for (of, expected) in [
            ("printer.lan.", &["64:ff9b::c000:202"][..]),
            ("myhost.", &[LOOPBACK]),
            ("dual.", &["2001:db8::3"]),
            ("gateway.usernet.internal.", &["fd00::2"]),
            // RFC 7050: how a guest learns the prefix.
            ("ipv4only.arpa.", &["64:ff9b::c000:aa", "64:ff9b::c000:ab"]),
        ] {
            assert_eq!(
                look_up(&resolver, of).await,
                (ResponseCode::NoError, expected.iter().map(ToString::to_string).collect())
            );
        }
        // No packet from the one guest to the other goes through the translator.
        assert_eq!(look_up(&resolver, "vm.usernet.internal.").await, (ResponseCode::NoError, vec![]));
        let known = ask(&resolver, &query("ipv4only.arpa.", RecordType::A), Transport::Udp).await;
        assert_eq!(known.answers.len(), 2);
    }
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn whatever_bytes_an_upstream_sends_there_is_an_answer() {
    let upstream = Upstream::start(|query, _| {
        let asked = query.queries[0].name().clone();
        let mut labels = asked.iter().map(|label| str::from_utf8(label).unwrap().parse::<usize>());
        let (at, of_a) = (labels.next()?.ok()?, labels.next()?.ok()? == 1);
        let chain = [alias(&asked.to_ascii(), "host.test."), a("host.test.", 60, [192, 0, 2, 1])];
        let is_a = query.queries[0].query_type() == RecordType::A;
        let reply = if is_a { reply(query, chain) } else { negative(query, ResponseCode::NoError, 30) };
        let mut reply = reply.to_vec().ok()?;
        if is_a == of_a {
            // Behind the question: others are not believed.
            *reply.get_mut(at)? ^= 0xc5;
        }
        Some(reply)
    })
    .await;
    let timeout = Duration::from_millis(100);
    let resolver = Resolver::new(Config { timeout, ..config(&upstream) }).unwrap();
    for at in 30..80 {
        for of_a in [0, 1] {
            let (code, addresses) = look_up(&resolver, &format!("{at}.{of_a}.test.")).await;
            assert!(code == ResponseCode::ServFail || code == ResponseCode::NoError, "{at} {of_a}");
            assert!(addresses.len() <= 1, "{at} {of_a}");
        }
    }
}
