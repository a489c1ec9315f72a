//! The layout of a DNS message (RFC 1035 §4.1), as far as a forwarder must know it.
//!
//! Records are stepped over, never decoded: an answer reaches the guest with the bytes that the upstream
//! wrote, whatever its types. Stepping over a name follows no compression pointer, so that a walk is linear
//! in the message (a chain of pointers behind every record would make following them quadratic).

use hickory_proto::serialize::binary::BinDecoder;

/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = 12;
/// Bytes of the OPT record that this resolver writes: root name, type, size, flags, no options.
pub(crate) const OPT_LEN: usize = 11;

/// This is a response.
pub(crate) const QR: u16 = 0x8000;
/// The kind of query; 0 is the standard one.
pub(crate) const OPCODE: u16 = 0x7800;
/// The answer did not fit.
pub(crate) const TC: u16 = 0x0200;
/// Recursion desired.
pub(crate) const RD: u16 = 0x0100;
/// Recursion available.
pub(crate) const RA: u16 = 0x0080;
/// Authentic data (RFC 4035; in a query, RFC 6840 §5.7).
pub(crate) const AD: u16 = 0x0020;
/// Checking disabled (RFC 4035).
pub(crate) const CD: u16 = 0x0010;
/// The response code.
pub(crate) const RCODE: u16 = 0x000f;
/// DNSSEC OK, in the flags of an OPT record (RFC 3225).
const DO: u32 = 0x8000;

/// Type numbers that matter to a forwarder.
pub(crate) const TYPE_SOA: u16 = 6;
pub(crate) const TYPE_AAAA: u16 = 28;
pub(crate) const TYPE_OPT: u16 = 41;
pub(crate) const TYPE_ANY: u16 = 255;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

impl Header {
    /// Reads the header at the start of a message.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let mut at = BinDecoder::new(message);
        Some(Self {
            id: read_u16(&mut at)?,
            flags: read_u16(&mut at)?,
            questions: read_u16(&mut at)?,
            answers: read_u16(&mut at)?,
            authorities: read_u16(&mut at)?,
            additionals: read_u16(&mut at)?,
        })
    }

    pub(crate) fn rcode(&self) -> u16 {
        self.flags & RCODE
    }

    /// Writes the header over the start of a message.
    pub(crate) fn write(&self, message: &mut [u8]) {
        let words = [self.id, self.flags, self.questions, self.answers, self.authorities, self.additionals];
        for (slot, word) in message.chunks_exact_mut(2).zip(words) {
            slot.copy_from_slice(&word.to_be_bytes());
        }
    }
}

/// A resource record, as a view.
pub(crate) struct Record<'a> {
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    /// Where the TTL stands in the message.
    pub(crate) ttl_at: usize,
    pub(crate) data: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads the next record; `None` when the message ends before it does.
    pub(crate) fn read(at: &mut BinDecoder<'a>) -> Option<Self> {
        skip_name(at)?;
        let kind = read_u16(at)?;
        let class = read_u16(at)?;
        let ttl_at = at.index();
        let ttl = at.read_u32().ok()?.unverified(/* any number is a TTL */);
        let length = read_u16(at)?;
        let data = at.read_slice(length.into()).ok()?.unverified(/* not looked into */);
        Some(Self { kind, class, ttl, ttl_at, data })
    }
}

/// What an OPT record says (RFC 6891 §6.1.3). Its options are between neighbours and go no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP message that the sender takes, in bytes.
    pub payload: u16,
    /// The upper eight bits of the response code.
    pub rcode_high: u8,
    /// The version; there is only 0.
    pub version: u8,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
}

impl Edns {
    /// Reads an OPT record's fixed fields.
    pub(crate) fn of(opt: &Record<'_>) -> Self {
        let [rcode_high, version, ..] = opt.ttl.to_be_bytes();
        Self { payload: opt.class, rcode_high, version, dnssec_ok: opt.ttl & DO != 0 }
    }

    /// The OPT record, without options.
    pub(crate) fn to_bytes(self) -> [u8; OPT_LEN] {
        let [kind_high, kind_low] = TYPE_OPT.to_be_bytes();
        let [payload_high, payload_low] = self.payload.to_be_bytes();
        let flags = if self.dnssec_ok { 0x80 } else { 0 };
        [0, kind_high, kind_low, payload_high, payload_low, self.rcode_high, self.version, flags, 0, 0, 0]
    }
}

pub(crate) fn read_u16(at: &mut BinDecoder<'_>) -> Option<u16> {
    Some(at.read_u16().ok()?.unverified(/* any number will do */))
}

/// Steps over a question: a name, its type and its class.
pub(crate) fn skip_question(at: &mut BinDecoder<'_>) -> Option<()> {
    skip_name(at)?;
    at.read_slice(4).ok().map(drop)
}

/// Steps over a name: labels up to the root or to the first compression pointer (RFC 1035 §4.1.4).
fn skip_name(at: &mut BinDecoder<'_>) -> Option<()> {
    loop {
        let length = at.read_u8().ok()?.unverified(/* every value is told apart below */);
        match length {
            0 => return Some(()),
            1..=63 => drop(at.read_slice(length.into()).ok()?),
            0xc0.. => return at.read_u8().ok().map(drop),
            _ => return None,
        }
    }
}
