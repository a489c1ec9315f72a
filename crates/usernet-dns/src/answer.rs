//! What goes back to a guest.

use std::net::Ipv6Addr;

use hickory_proto::op::{Message, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::Record as LocalRecord;
use hickory_proto::serialize::binary::BinDecoder;

use crate::query::{Query, Subject};
use crate::wire::{
    CD, Edns, HEADER_LEN, Header, OPCODE, OPT_LEN, QR, RA, RD, Record, TC, TYPE_AAAA, TYPE_ANY, TYPE_OPT,
    TYPE_SOA, skip_question,
};

/// The longest message whose records are read, in bytes: names take time that grows with its square.
const MAX_READ: usize = 4096;
/// The largest message over UDP, in bytes, both ways: it passes every path unfragmented (RFC 9715 §3.1 has
/// 1400 at most; 1232 is what fits IPv6's smallest MTU).
pub(crate) const MAX_UDP: u16 = 1232;
/// The largest message over UDP to who does not speak EDNS (RFC 1035 §4.2.1).
const MAX_PLAIN_UDP: u16 = 512;
/// No answer is kept for longer, in seconds (RFC 8767 §4 allows a week).
const MAX_TTL: u32 = 86_400;
/// No negative answer is kept for longer, in seconds (RFC 2308 §5: one to three hours).
const MAX_NEGATIVE_TTL: u32 = 10_800;

/// How a message travels between guest and resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram; an answer that does not fit is cut and marked.
    Udp,
    /// A stream, where a message has up to 65,535 bytes.
    Tcp,
}

/// An answer that can be given to all who ask the same.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Header, question and records, without OPT.
    message: Vec<u8>,
    /// Where TTLs stand, and their values in seconds.
    ttls: Vec<(usize, u32)>,
    /// For how many seconds it may be given again.
    pub(crate) lifetime: u32,
    /// For how many seconds there is nothing, when that was said (RFC 2308 §5).
    pub(crate) negative_ttl: Option<u32>,
    /// The upper bits of the response code, which travel in OPT.
    rcode_high: u8,
}

impl Answer {
    /// Takes over what an upstream replied to `subject`; `None` when it is malformed.
    pub(crate) fn from_upstream(mut message: Vec<u8>, subject: &Subject) -> Option<Self> {
        let mut header = Header::parse(&message)?;
        if header.flags & (QR | OPCODE | TC) != QR {
            return None;
        }
        if header.questions == 0 {
            return Some(Self::bare(&subject.question, subject.flags, header.rcode().into()));
        }
        let body = HEADER_LEN + subject.question.len();
        let mut at = BinDecoder::new(&message);
        at.read_slice(body).ok()?;

        let mut ttls = Vec::new();
        let mut answered = false;
        let mut negative_ttl = None;
        let question_type = subject.question.last_chunk::<4>().map(|&[high, low, ..]| [high, low])?;
        let question_type = u16::from_be_bytes(question_type);
        for _ in 0..header.answers {
            let record = Record::read(&mut at)?;
            answered |= record.kind == question_type || question_type == TYPE_ANY;
            ttls.push((record.ttl_at, ttl(&record)));
        }
        for _ in 0..header.authorities {
            let record = Record::read(&mut at)?;
            let mut ttl = ttl(&record);
            // RFC 2308 §3 and §5: a negative answer lasts for the lesser of SOA's TTL and MINIMUM, its last
            // field.
            if let (TYPE_SOA, Some(minimum)) = (record.kind, record.data.last_chunk()) {
                ttl = ttl.min(u32::from_be_bytes(*minimum)).min(MAX_NEGATIVE_TTL);
                negative_ttl = Some(ttl);
            }
            ttls.push((record.ttl_at, ttl));
        }
        let mut end = at.index();
        for done in 0..header.additionals {
            let record = Record::read(&mut at)?;
            if record.kind == TYPE_OPT {
                // Each neighbour writes its own OPT. It stands last in nearly all messages; what follows it is
                // optional, and would not survive the move (compression pointers are offsets).
                header.additionals = done;
                if Edns::of(&record).rcode_high != 0 {
                    return None; // BADVERS and the like speak of our own query
                }
                break;
            }
            ttls.push((record.ttl_at, ttl(&record)));
            end = at.index();
        }

        let positive = header.rcode() == u16::from(ResponseCode::NoError) && answered;
        let negative = negative_ttl.is_some()
            && [ResponseCode::NoError, ResponseCode::NXDomain].map(u16::from).contains(&header.rcode());
        let lifetime = if positive || negative { ttls.iter().map(|&(_, ttl)| ttl).min() } else { None };
        message.truncate(end);
        header.write(&mut message);
        Some(Self { message, ttls, lifetime: lifetime.unwrap_or(0), negative_ttl, rcode_high: 0 })
    }

    /// An answer of this resolver's own authority.
    pub(crate) fn local(
        query: &Query,
        code: ResponseCode,
        answers: Vec<LocalRecord>,
        authorities: Vec<LocalRecord>,
    ) -> Self {
        Self::of_records(query, code, true, answers, authorities)
    }

    /// An answer that is put together from others.
    pub(crate) fn made_up(
        query: &Query,
        code: ResponseCode,
        answers: Vec<LocalRecord>,
        authorities: Vec<LocalRecord>,
    ) -> Self {
        Self::of_records(query, code, false, answers, authorities)
    }

    fn of_records(
        query: &Query,
        code: ResponseCode,
        authoritative: bool,
        answers: Vec<LocalRecord>,
        authorities: Vec<LocalRecord>,
    ) -> Self {
        let mut message = Message::error_msg(query.id, OpCode::Query, code);
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_available = true;
        message.metadata.recursion_desired = query.flags & RD != 0;
        message.metadata.checking_disabled = query.flags & CD != 0;
        let mut question = Question::query(query.name.clone(), query.record_type);
        question.set_query_class(query.class);
        message.add_query(question).add_answers(answers).add_authorities(authorities);
        match message.to_vec() {
            Ok(message) => Self { message, ttls: Vec::new(), lifetime: 0, negative_ttl: None, rcode_high: 0 },
            // More records than a message has room for.
            Err(_) => Self::failure(query, ResponseCode::ServFail),
        }
    }

    /// An answer that says only what went wrong.
    pub(crate) fn failure(query: &Query, code: ResponseCode) -> Self {
        Self::bare(&query.question, query.flags, code)
    }

    fn bare(question: &[u8], flags: u16, code: ResponseCode) -> Self {
        let mut message = vec![0; HEADER_LEN];
        message.extend_from_slice(question);
        let flags = QR | RA | flags & (RD | CD) | u16::from(code.low());
        Header { id: 0, flags, questions: 1, answers: 0, authorities: 0, additionals: 0 }.write(&mut message);
        Self { message, ttls: Vec::new(), lifetime: 0, negative_ttl: None, rcode_high: code.high() }
    }

    /// Whether another server should be asked instead.
    pub(crate) fn is_refusal(&self) -> bool {
        let refusals = [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused];
        self.response_code().is_some_and(|code| refusals.map(u16::from).contains(&code))
    }

    /// The response code in the header.
    pub(crate) fn response_code(&self) -> Option<u16> {
        Some(Header::parse(&self.message)?.rcode())
    }

    /// The IPv6 addresses among the answers, as they are stepped over.
    pub(crate) fn addresses_v6(&self) -> Option<impl Iterator<Item = Ipv6Addr>> {
        let header = Header::parse(&self.message)?;
        let mut at = BinDecoder::new(&self.message);
        at.read_slice(HEADER_LEN).ok()?;
        for _ in 0..header.questions {
            skip_question(&mut at)?;
        }
        let records = (0..header.answers).map_while(move |_| Record::read(&mut at));
        Some(records.filter_map(|record| {
            let octets: [u8; 16] = (record.kind == TYPE_AAAA).then(|| record.data.try_into().ok())??;
            Some(octets.into())
        }))
    }

    /// The message with its records read, `age` seconds later; `None` when one cannot be, or when it is so
    /// long that to follow the names in it, which may lead on and on, could take a while.
    pub(crate) fn to_message(&self, age: u32) -> Option<Message> {
        (self.message.len() <= MAX_READ).then(|| Message::from_vec(&self.aged(age)).ok()).flatten()
    }

    fn aged(&self, age: u32) -> Vec<u8> {
        let mut message = Vec::with_capacity(self.message.len() + OPT_LEN);
        message.extend_from_slice(&self.message);
        for &(at, ttl) in &self.ttls {
            overwrite(&mut message, at, &ttl.saturating_sub(age).to_be_bytes());
        }
        message
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Self>() + self.message.len() + self.ttls.len() * size_of::<(usize, u32)>()
    }

    /// The message for one guest: its ID, its question's case, TTLs counted down by `age` seconds, an OPT
    /// record if it sent one (RFC 6891 §6.1.1), and not larger than it takes.
    pub(crate) fn render(&self, query: &Query, transport: Transport, age: u32) -> Vec<u8> {
        let opt = query.edns.map(|edns| Edns {
            payload: MAX_UDP,
            rcode_high: self.rcode_high,
            version: 0,
            dnssec_ok: edns.dnssec_ok,
        });
        let limit = match (transport, query.edns) {
            (Transport::Udp, Some(edns)) => edns.payload.clamp(MAX_PLAIN_UDP, MAX_UDP),
            (Transport::Udp, None) => MAX_PLAIN_UDP,
            (Transport::Tcp, _) => u16::MAX,
        };
        let mut message = self.aged(age);
        let Some(mut header) = Header::parse(&message) else { return message };
        header.id = query.id;

        let body = HEADER_LEN + query.question.len();
        if message.len() + opt.map_or(0, |_| OPT_LEN) > limit.into() {
            message.truncate(body);
            header =
                Header { flags: header.flags | TC, answers: 0, authorities: 0, additionals: 0, ..header };
        }
        if let Some(opt) = opt {
            message.extend_from_slice(&opt.to_bytes());
            header.additionals = header.additionals.saturating_add(1);
        }
        header.write(&mut message);
        overwrite(&mut message, HEADER_LEN, &query.question);
        message
    }
}

/// The answer to a message that is no query: its header, turned around.
pub(crate) fn refusal(message: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let Header { id, flags, .. } = Header::parse(message)?;
    let flags = QR | flags & (OPCODE | RD | CD) | u16::from(code.low());
    let mut refusal = vec![0; HEADER_LEN];
    Header { id, flags, questions: 0, answers: 0, authorities: 0, additionals: 0 }.write(&mut refusal);
    Some(refusal)
}

/// A record's TTL in seconds; one with the top bit set counts as 0 (RFC 2181 §8).
fn ttl(record: &Record<'_>) -> u32 {
    if i32::try_from(record.ttl).is_ok() { record.ttl.min(MAX_TTL) } else { 0 }
}

fn overwrite(message: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(slot) = message.get_mut(at..at + bytes.len()) {
        slot.copy_from_slice(bytes);
    }
}
