//! What a guest sent, parsed once.
//!
//! dhcproto's decoder is not for guests: it subtracts from option lengths before it has looked at them.

use std::net::Ipv6Addr;

use dhcproto::v6::{MessageType, OptionCode};

use crate::drops::DropReason;
use crate::leases::host_label;

/// The longest DUID (RFC 8415 §11.1): a type and 128 bytes.
const MAX_DUID: usize = 130;
/// How many IA_NAs and IA_PDs of a message, and addresses of an IA_NA, are heeded: the first. What they
/// are answered with fits into the least MTU.
const MAX_ENTRIES: usize = 4;
/// IAID, T1 and T2, in front of an IA's own options.
const IA_HEADER: usize = 12;

/// A message from a guest.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    pub(super) xid: [u8; 3],
    /// The guest's DUID; empty when it does not say.
    pub(super) client_id: Vec<u8>,
    /// The server that the guest speaks to.
    pub(super) server_id: Option<Vec<u8>>,
    pub(super) ias: Vec<Ia>,
    /// The IAIDs of the prefixes that it asks for.
    pub(super) prefixes: Vec<u32>,
    pub(super) rapid_commit: bool,
    /// Option 39, as a DNS label.
    pub(super) hostname: Option<String>,
}

/// An IA_NA: a place for an address.
#[derive(Debug)]
pub(super) struct Ia {
    pub(super) id: u32,
    /// The addresses that the guest has there, or would like.
    pub(super) addresses: Vec<Ipv6Addr>,
}

impl Request {
    /// # Errors
    /// [`DropReason::Dhcp`] when it is malformed.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, DropReason> {
        let ([kind, xid @ ..], rest) = payload.split_first_chunk::<4>().ok_or(DropReason::Dhcp)?;
        let mut request = Self {
            kind: MessageType::from(*kind),
            xid: *xid,
            client_id: Vec::new(),
            server_id: None,
            ias: Vec::new(),
            prefixes: Vec::new(),
            rapid_commit: false,
            hostname: None,
        };
        for option in options(rest) {
            let (code, data) = option?;
            request.take(code, data)?;
        }
        Ok(request)
    }

    fn take(&mut self, code: OptionCode, data: &[u8]) -> Result<(), DropReason> {
        match code {
            OptionCode::ClientId | OptionCode::ServerId if !(3..=MAX_DUID).contains(&data.len()) => {
                return Err(DropReason::Dhcp);
            }
            OptionCode::ClientId => self.client_id = data.to_vec(),
            OptionCode::ServerId => self.server_id = Some(data.to_vec()),
            OptionCode::IANA if self.ias.len() < MAX_ENTRIES => self.ias.push(Ia::parse(data)?),
            OptionCode::IAPD if self.prefixes.len() < MAX_ENTRIES => {
                let (id, _) = ia_parts(data)?;
                self.prefixes.push(id);
            }
            OptionCode::RapidCommit => self.rapid_commit = true,
            // RFC 4704 §4: flags, and a domain name in wire format, of which the first label counts.
            OptionCode::ClientFqdn => {
                let name = data.get(1..).and_then(<[u8]>::split_first);
                self.hostname = name.and_then(|(len, name)| host_label(name.get(..usize::from(*len))?));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Ia {
    fn parse(data: &[u8]) -> Result<Self, DropReason> {
        let (id, rest) = ia_parts(data)?;
        let mut addresses = Vec::new();
        for option in options(rest) {
            let (code, data) = option?;
            if code == OptionCode::IAAddr && addresses.len() < MAX_ENTRIES {
                // The address, two lifetimes, and options of its own.
                let address: &[u8; 24] = data.first_chunk().ok_or(DropReason::Dhcp)?;
                addresses.extend(address.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets)));
            }
        }
        Ok(Self { id, addresses })
    }
}

fn ia_parts(data: &[u8]) -> Result<(u32, &[u8]), DropReason> {
    let ([a, b, c, d, ..], rest) = data.split_first_chunk::<IA_HEADER>().ok_or(DropReason::Dhcp)?;
    Ok((u32::from_be_bytes([*a, *b, *c, *d]), rest))
}

/// Options one by one: code and length, 2 bytes each, and the data.
fn options(mut rest: &[u8]) -> impl Iterator<Item = Result<(OptionCode, &[u8]), DropReason>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let option = rest.split_first_chunk::<4>().and_then(|([a, b, c, d], behind)| {
            let len = usize::from(u16::from_be_bytes([*c, *d]));
            let (data, next) = behind.split_at_checked(len)?;
            rest = next;
            Some((OptionCode::from(u16::from_be_bytes([*a, *b])), data))
        });
        if option.is_none() {
            rest = &[];
        }
        Some(option.ok_or(DropReason::Dhcp))
    })
}
