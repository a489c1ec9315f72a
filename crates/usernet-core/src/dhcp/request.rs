//! What a guest sent, parsed once.
//!
//! dhcproto reads the fixed fields, and the options one by one as bytes. Its decoder for a whole
//! message is not for guests: with some option lengths it panics, and one option that it cannot read
//! hides all that follow.

use std::net::Ipv4Addr;

use dhcproto::Decodable;
use dhcproto::v4::borrowed::DhcpOptionIterator;
use dhcproto::v4::{HType, MAGIC, MIN_PACKET_SIZE, Message, MessageType, Opcode, OptionCode};

use super::{ALWAYS_FITS, HEADERS_LEN};
use crate::drops::DropReason;
use crate::leases::{Client, host_label};

/// Where the magic cookie lies: behind the fixed fields.
const COOKIE_AT: usize = 236;

/// Where the options begin: behind the magic cookie.
pub(super) const OPTIONS_AT: usize = COOKIE_AT + MAGIC.len();

/// The longest client identifier: what one option holds.
const CLIENT_ID_MAX: usize = 255;

/// A DHCP or BOOTP request from a guest.
#[derive(Debug)]
pub(super) struct Request {
    /// The fixed fields, `sname` and `file` cleared.
    pub(super) header: Message,
    /// Option 53; none: BOOTP.
    pub(super) kind: Option<MessageType>,
    pub(super) client: Client,
    /// Option 61, as it was sent.
    pub(super) client_id: Option<Vec<u8>>,
    /// Option 50: the address that the guest would like.
    pub(super) requested: Option<Ipv4Addr>,
    /// Option 54: the server that the guest speaks to.
    pub(super) server: Option<Ipv4Addr>,
    /// Option 12, as a DNS label.
    pub(super) hostname: Option<String>,
    /// The longest reply that the guest takes, in bytes of UDP payload.
    pub(super) max_len: usize,
}

impl Request {
    /// # Errors
    /// [`DropReason::Dhcp`] for what is malformed, [`DropReason::DhcpIgnored`] for what is no request,
    /// or has come through a relay agent.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, DropReason> {
        let (fixed, options) = payload.split_at_checked(OPTIONS_AT).ok_or(DropReason::Dhcp)?;
        if !fixed.ends_with(&MAGIC) {
            return Err(DropReason::Dhcp);
        }
        let mut header = Message::from_bytes(fixed).map_err(|_| DropReason::Dhcp)?;
        if header.opcode() != Opcode::BootRequest || !header.giaddr().is_unspecified() {
            return Err(DropReason::DhcpIgnored);
        }
        // `chaddr` panics when `hlen` is over 16.
        if header.htype() != HType::Eth || header.hlen() != 6 {
            return Err(DropReason::Dhcp);
        }
        let mac = <[u8; 6]>::try_from(header.chaddr()).map_err(|_| DropReason::Dhcp)?;
        if mac == [0; 6] || mac.first().is_some_and(|first| first & 1 == 1) {
            return Err(DropReason::Dhcp);
        }
        header.clear_sname();
        header.clear_fname();

        let mut request = Self {
            header,
            kind: None,
            client: Client { mac, id: None },
            client_id: None,
            requested: None,
            server: None,
            hostname: None,
            max_len: 0,
        };
        for option in DhcpOptionIterator::new(options) {
            request.take(option.code(), option.data())?;
        }
        let least = if request.kind.is_some() { ALWAYS_FITS } else { MIN_PACKET_SIZE };
        request.max_len = request.max_len.max(least);
        Ok(request)
    }

    /// The address that the guest says it has.
    pub(super) fn ciaddr(&self) -> Option<Ipv4Addr> {
        Some(self.header.ciaddr()).filter(|ciaddr| !ciaddr.is_unspecified())
    }

    fn take(&mut self, code: OptionCode, data: &[u8]) -> Result<(), DropReason> {
        match code {
            OptionCode::MessageType => {
                let [kind] = fixed(data)?;
                self.kind = Some(kind.into());
            }
            OptionCode::RequestedIpAddress => {
                self.requested =
                    Some(fixed(data)?.into()).filter(|address: &Ipv4Addr| !address.is_unspecified());
            }
            OptionCode::ServerIdentifier => self.server = Some(fixed(data)?.into()),
            OptionCode::Hostname => self.hostname = host_label(data),
            OptionCode::MaxMessageSize => {
                self.max_len = usize::from(u16::from_be_bytes(fixed(data)?)).saturating_sub(HEADERS_LEN);
            }
            OptionCode::ClientIdentifier if data.len() > CLIENT_ID_MAX => return Err(DropReason::Dhcp),
            OptionCode::ClientIdentifier if !data.is_empty() => {
                // An identifier that only says the MAC again (type 1: Ethernet) tells nobody apart.
                let says_mac = matches!(data.split_first(), Some((1, mac)) if *mac == self.client.mac);
                self.client.id = (!says_mac).then(|| data.into());
                self.client_id = Some(data.to_vec());
            }
            _ => {}
        }
        Ok(())
    }
}

fn fixed<const N: usize>(data: &[u8]) -> Result<[u8; N], DropReason> {
    data.try_into().map_err(|_| DropReason::Dhcp)
}
