//! Whatever bytes come, from guests or upstreams: no panic, and answers that fit.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use usernet_dns::{Query, QueryError, Transport};

fn name(name: &str) -> Name {
    Name::from_ascii(name).unwrap()
}

fn query() -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Question::query(name("www.example.test."), RecordType::AAAA));
    query.edns = Some(hickory_proto::op::Edns::new());
    query
}

fn reply() -> Vec<u8> {
    let mut reply = query().into_response();
    reply.metadata.response_code = ResponseCode::NXDomain;
    let soa = SOA::new(name("ns.test."), name("root.test."), 7, 3600, 600, 86_400, 60);
    reply.add_answer(Record::from_rdata(name("www.example.test."), 60, RData::CNAME(CNAME(name("x.test.")))));
    reply.add_authority(Record::from_rdata(name("test."), 3600, RData::SOA(soa)));
    reply.to_vec().unwrap()
}

/// A few bytes of `message` changed, and its end cut or prolonged.
fn mutated(message: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = message.len();
    (
        proptest::collection::vec((0..length, any::<u8>()), 0..6),
        0..=length,
        proptest::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(move |(changes, keep, tail)| {
            let mut message = message.clone();
            for (at, byte) in changes {
                message[at] = byte;
            }
            // Mostly whole: what is cut early is not read far.
            if keep % 4 == 0 {
                message.truncate(keep);
            }
            message.extend(tail);
            message
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn queries(bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), mutated(query().to_vec().unwrap())]) {
        match Query::parse(&bytes) {
            Ok(query) => prop_assert_eq!(query.id.to_be_bytes(), [bytes[0], bytes[1]]),
            Err(error) => prop_assert_eq!(error == QueryError::Unanswerable, bytes.len() < 12 || bytes[2] & 0x80 != 0),
        }
    }

    #[test]
    fn replies(bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..2000), mutated(reply())]) {
        let query = Query::parse(&query().to_vec().unwrap()).unwrap();
        for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
            if let Some(answer) = query.answer_from(&bytes, transport) {
                prop_assert!(answer.len() <= limit);
                prop_assert_eq!(&answer[..2], &[0, 7]);
                prop_assert_eq!(Query::parse(&answer), Err(QueryError::Unanswerable), "a response");
            }
        }
    }
}

#[test]
fn pointer_chains_cost_no_more_than_their_bytes() {
    // 8,000 pointers, each to the one before, and records whose names are the last of them.
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 1, 0, 1];
    message.extend([0, 0, 16, 0, 1, 0, 0, 0, 0]);
    message.extend(16_000_u16.to_be_bytes());
    let start = u16::try_from(message.len()).unwrap();
    message.extend(
        (0..8000).flat_map(|link: u16| (0xc000 | (start + (2 * link).saturating_sub(2))).to_be_bytes()),
    );
    let last = 0xc000 | (start + 15_998);
    for _ in 1..4095 {
        message.extend(last.to_be_bytes());
        message.extend([0, 16, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    let began = std::time::Instant::now();
    assert!(Query::parse(&message).is_ok());
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
}
