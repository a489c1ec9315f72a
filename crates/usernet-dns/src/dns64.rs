//! DNS64 (RFC 6147): addresses for names that have none in IPv6, behind the well-known prefix 64:ff9b::/96.
//!
//! Both kinds of address are asked for at once, so that an answer takes no longer than without. Nothing made
//! up here is kept: it is made again from the answers that are.
//!
//! Where this differs: the records of an answer that are neither addresses nor aliases (signatures) are left
//! out, and so are addresses that stand for the asking host itself, 127.0.0.0/8 and 0.0.0.0/8, to which no
//! packet could go. Addresses that are private are not (the network reaches them).

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::answer::Answer;
use crate::query::Query;
use crate::wire::CD;

/// 64:ff9b::/96 (RFC 6052 §2.1).
const PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
/// How long an answer lasts at most when the one without addresses does not tell, in seconds (RFC 6147 §5.1.7).
const TTL: u32 = 600;
/// By which clients find the prefix (RFC 7050), and its addresses.
const IPV4_ONLY: (&str, [Ipv4Addr; 2]) =
    ("ipv4only.arpa.", [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)]);

/// An answer and its age in seconds.
pub(crate) type Found<'a> = (&'a Answer, u32);

/// What else to ask, so as to answer a query.
pub(crate) enum Other {
    /// For the IPv4 addresses of a name.
    Addresses(Query),
    /// For the name of the IPv4 address that an IPv6 one stands for.
    Name(Query),
}

/// The IPv6 address that stands for an IPv4 one.
pub(crate) fn embed(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(PREFIX.to_bits() | u128::from(address.to_bits()))
}

/// The IPv4 addresses of a name that is not for others to answer (RFC 8880 §7.1).
pub(crate) fn well_known(name: &Name) -> Option<[Ipv4Addr; 2]> {
    let (known, addresses) = IPV4_ONLY;
    name.to_ascii().eq_ignore_ascii_case(known).then_some(addresses)
}

impl Other {
    /// `None` when the query is answered as it is.
    pub(crate) fn of(query: &Query) -> Option<Self> {
        // RFC 6147 §5.5: who validates for itself would not believe what is made up.
        let validates = query.flags & CD != 0 && query.edns.is_some_and(|edns| edns.dnssec_ok);
        if query.class != DNSClass::IN || validates {
            return None;
        }
        match query.record_type {
            RecordType::AAAA => Some(Self::Addresses(query.about(query.name.clone(), RecordType::A)?)),
            RecordType::PTR => {
                let net = query.name.parse_arpa_name().ok().filter(|net| net.prefix_len() == 128)?;
                let std::net::IpAddr::V6(address) = net.addr() else { return None };
                let [.., a, b, c, d] = address.octets();
                let v4 = Ipv4Addr::new(a, b, c, d);
                (embed(v4) == address)
                    .then(|| query.about(v4.into(), RecordType::PTR))
                    .flatten()
                    .map(Self::Name)
            }
            _ => None,
        }
    }
}

/// Whether an answer about IPv6 addresses is given as it is: it has some, or the name does not exist (RFC
/// 6147 §5.1.2). Refusals and silence count as none (§5.1.2, §5.1.3).
pub(crate) fn suffices(answer: Option<Found<'_>>) -> bool {
    let Some((answer, _)) = answer else { return false };
    answer.response_code() == Some(ResponseCode::NXDomain.into())
        || answer.addresses_v6().is_some_and(|mut addresses| addresses.any(|address| !is_excluded(&address)))
}

/// The answer to a query for IPv6 addresses without those that no packet has (RFC 6147 §5.1.4); `None` when
/// there are none of them.
pub(crate) fn without_excluded(query: &Query, (answer, age): Found<'_>) -> Option<Answer> {
    let excluded = |data: &RData| matches!(data, RData::AAAA(address) if is_excluded(address));
    answer.addresses_v6()?.any(|address| is_excluded(&address)).then_some(())?;
    let mut message = answer.to_message(age)?;
    message.answers.retain(|record| !excluded(&record.data));
    Some(Answer::made_up(query, ResponseCode::NoError, message.answers, Vec::new()))
}

/// The answer to a query for IPv6 addresses, made of what there is in IPv4; `none` is what was said about IPv6.
/// `None` when there is nothing to make it of.
pub(crate) fn synthesize(query: &Query, none: Option<Found<'_>>, (answer, age): Found<'_>) -> Option<Answer> {
    let message = answer.to_message(age)?;
    if message.metadata.response_code != ResponseCode::NoError {
        return None;
    }
    let negative = none.and_then(|(answer, age)| Some(answer.negative_ttl?.saturating_sub(age)));
    let most = negative.unwrap_or(TTL);
    let translated = |record: Record| match &record.data {
        RData::A(address) if can_be_sent_to(address.0) => {
            let data = RData::AAAA(embed(address.0).into());
            Some(Record::from_rdata(record.name, record.ttl.min(most), data))
        }
        RData::CNAME(_) => Some(record),
        _ => None,
    };
    let answers: Vec<Record> = message.answers.into_iter().filter_map(translated).collect();
    let made = answers.iter().any(|record| record.record_type() == RecordType::AAAA);
    made.then(|| Answer::made_up(query, ResponseCode::NoError, answers, Vec::new()))
}

/// The answer to a query for the name of a translated address, which is an alias of the IPv4 one's (RFC 6147
/// §5.3.1), whose name is in `answer` to `other`.
pub(crate) fn alias(query: &Query, other: &Query, (answer, age): Found<'_>) -> Option<Answer> {
    let message = answer.to_message(age)?;
    let alias = RData::CNAME(CNAME(other.name.clone()));
    let alias = Record::from_rdata(query.name.clone(), TTL, alias);
    let answers = std::iter::once(alias).chain(message.answers).collect();
    Some(Answer::made_up(query, message.metadata.response_code, answers, message.authorities))
}

fn is_excluded(address: &Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// Whether a packet to an address may leave the host that sends it.
fn can_be_sent_to(address: Ipv4Addr) -> bool {
    !address.is_loopback() && address.octets()[0] != 0
}
