//! What a guest asks.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable};

use crate::answer::{Answer, Transport};
use crate::wire::{AD, CD, Edns, HEADER_LEN, Header, OPCODE, QR, RD, Record, TYPE_OPT, read_u16};

/// A standard query with one question, read out of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The message ID, which the answer must carry.
    pub id: u16,
    /// The name asked for, in the case that the guest wrote.
    pub name: Name,
    /// The record type asked for.
    pub record_type: RecordType,
    /// The class asked for; `IN` in all but a few.
    pub class: DNSClass,
    /// The guest's OPT record, when it sent one.
    pub edns: Option<Edns>,
    /// RD, AD and CD where they stand in the header.
    pub(crate) flags: u16,
    /// The question section as the guest wrote it; an answer repeats it, case and all.
    pub(crate) question: Vec<u8>,
}

/// Why a message is no query that can be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// It has no whole header, or is itself a response: answering could make a loop.
    #[error("not a query")]
    Unanswerable,
    /// The header is one of a query, but what follows is not one well-formed question.
    #[error("malformed query")]
    Malformed,
    /// The operation is not a standard query: status, notify, update.
    #[error("not a standard query")]
    NotImplemented,
}

impl QueryError {
    /// The response code to answer with; `None` when silence is right.
    pub fn response_code(self) -> Option<ResponseCode> {
        match self {
            Self::Unanswerable => None,
            Self::Malformed => Some(ResponseCode::FormErr),
            Self::NotImplemented => Some(ResponseCode::NotImp),
        }
    }
}

impl Query {
    /// Reads a query out of a DNS message (RFC 1035 §4.1, RFC 6891 §6.1). Pure; takes time and memory in
    /// proportion to the message.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn parse(message: &[u8]) -> Result<Self, QueryError> {
        let header = Header::parse(message).ok_or(QueryError::Unanswerable)?;
        if header.flags & QR != 0 {
            return Err(QueryError::Unanswerable);
        }
        if header.flags & OPCODE != 0 {
            return Err(QueryError::NotImplemented);
        }
        Self::parse_body(header, message).ok_or(QueryError::Malformed)
    }

    fn parse_body(header: Header, message: &[u8]) -> Option<Self> {
        // RFC 9619: a standard query asks exactly one thing.
        if header.questions != 1 {
            return None;
        }
        let mut at = BinDecoder::new(message);
        at.read_slice(HEADER_LEN).ok()?;
        let name = Name::read(&mut at).ok()?;
        // A compressed name here could only point into the header, and its question could not be repeated.
        if at.index() - HEADER_LEN != encoded_len(&name) {
            return None;
        }
        let record_type = RecordType::from(read_u16(&mut at)?);
        let class = DNSClass::from(read_u16(&mut at)?);
        let question = message.get(HEADER_LEN..at.index())?.to_vec();

        for _ in 0..u32::from(header.answers) + u32::from(header.authorities) {
            Record::read(&mut at)?;
        }
        let mut edns = None;
        for _ in 0..header.additionals {
            let record = Record::read(&mut at)?;
            // RFC 6891 §6.1.1: more than one OPT is a format error.
            if record.kind == TYPE_OPT && edns.replace(Edns::of(&record)).is_some() {
                return None;
            }
        }
        let flags = header.flags & (RD | AD | CD);
        Some(Self { id: header.id, name, record_type, class, edns, flags, question })
    }

    /// What the guest gets when an upstream replies this; `None` when the reply is malformed. Pure.
    ///
    /// That the reply is one to this query, by ID and question, is for the caller to know.
    pub fn answer_from(&self, reply: &[u8], transport: Transport) -> Option<Vec<u8>> {
        Some(Answer::from_upstream(reply.to_vec(), &self.subject())?.render(self, transport, 0))
    }

    /// The same guest's query for something else, of class `IN`. `None` when the name is none.
    pub(crate) fn about(&self, name: Name, record_type: RecordType) -> Option<Self> {
        let mut question = name.to_bytes().ok()?;
        for field in [record_type.into(), u16::from(DNSClass::IN)] {
            question.extend(field.to_be_bytes());
        }
        Some(Self { name, record_type, class: DNSClass::IN, question, ..self.clone() })
    }

    /// What it asks for, whoever asks.
    pub(crate) fn subject(&self) -> Subject {
        let mut question = self.question.clone();
        // Not the type and class behind the name. Label lengths end at 63, below the letters.
        if let Some(name) = question.get_mut(..encoded_len(&self.name)) {
            name.make_ascii_lowercase();
        }
        Subject { question, flags: self.flags, dnssec_ok: self.edns.map(|edns| edns.dnssec_ok) }
    }
}

/// All of a query that its answer depends on: what goes upstream, and what answers are kept under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    /// The question section, its name in lower case.
    pub(crate) question: Vec<u8>,
    /// RD, AD and CD.
    pub(crate) flags: u16,
    /// The DO bit; `None` when the guest does not speak EDNS, and then we do not for it.
    dnssec_ok: Option<bool>,
}

impl Subject {
    /// The query to send upstream.
    pub(crate) fn to_message(&self, id: u16, payload: u16) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        message.extend_from_slice(&self.question);
        if let Some(dnssec_ok) = self.dnssec_ok {
            message.extend_from_slice(&Edns { payload, rcode_high: 0, version: 0, dnssec_ok }.to_bytes());
        }
        let additionals = self.dnssec_ok.is_some().into();
        Header { id, flags: self.flags, questions: 1, answers: 0, authorities: 0, additionals }
            .write(&mut message);
        message
    }
}

/// Bytes of a name without compression, its root included (`Name::len` counts the root only when alone).
fn encoded_len(name: &Name) -> usize {
    if name.is_root() { 1 } else { name.len() + 1 }
}
