use dhcproto::v6::{DhcpOption, DhcpOptions, Message, MessageType, OptionCode, Status};
use dhcproto::{Decodable, Decoder};

use super::*;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const DUID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x54, 0, 0, 0, 1];
const SERVER: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 10, 0, 2, 2];
const P1: PortId = PortId(1);
const P2: PortId = PortId(2);

fn at(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn addr(addr: &str) -> Ipv6Addr {
    addr.parse().unwrap()
}

fn server() -> Server {
    Server::new(Config { search: vec!["lab.example".into(), "example".into()], ..Config::default() }, GATEWAY)
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn ia(id: u32, addresses: &[&str]) -> Vec<u8> {
    let mut data = [id.to_be_bytes(), [0; 4], [0; 4]].concat();
    for address in addresses {
        data.extend(option(5, &[&addr(address).octets()[..], &[0; 8]].concat()));
    }
    option(3, &data)
}

fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    let id = option(1, &DUID);
    [&[kind, 1, 2, 3][..], &id, &options.concat()].concat()
}

fn server_id() -> Vec<u8> {
    option(2, &SERVER)
}

/// The reply, read by dhcproto.
fn read(reply: &Reply) -> (MessageType, DhcpOptions) {
    let message = Message::decode(&mut Decoder::new(&reply.payload)).unwrap();
    assert_eq!(message.xid(), [1, 2, 3]);
    assert_eq!(message.opts().get(OptionCode::ServerId), Some(&DhcpOption::ServerId(SERVER.to_vec())));
    (message.msg_type(), message.opts().clone())
}

/// What the reply says of the only IA_NA: addresses with their valid lifetimes, and the status.
fn leased(options: &DhcpOptions) -> (Vec<(String, u32)>, Option<Status>) {
    let Some(DhcpOption::IANA(ia)) = options.get(OptionCode::IANA) else { panic!("{options:?}") };
    let addresses = ia.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(entry) => Some((entry.addr.to_string(), entry.valid_life)),
        _ => None,
    });
    (addresses.collect(), status(&ia.opts))
}

fn status(options: &DhcpOptions) -> Option<Status> {
    match options.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(code)) => Some(code.status),
        _ => None,
    }
}

fn ask(server: &mut Server, port: PortId, message: &[u8], now: u64) -> (MessageType, DhcpOptions) {
    read(&server.handle(port, MAC, message, at(now)).unwrap())
}

#[test]
fn an_address_is_offered_requested_renewed_and_released() {
    let mut server = server();
    let (kind, options) = ask(&mut server, P1, &message(1, &[ia(7, &[])]), 1);
    assert_eq!((kind, leased(&options).0), (MessageType::Advertise, vec![("fd00::15".to_owned(), 86_400)]));
    assert_eq!(server.leases(at(1)).count(), 0, "an offer is no lease");

    let request = message(3, &[server_id(), ia(7, &["fd00::15"]), option(39, b"\0\x07Build-7\x03lab\0")]);
    let reply = server.handle(P1, MAC, &request, at(2)).unwrap();
    let (kind, options) = read(&reply);
    assert_eq!((kind, leased(&options).0), (MessageType::Reply, vec![("fd00::15".to_owned(), 86_400)]));
    assert_eq!((reply.grants.len(), reply.grants[0].renewed), (1, false));
    let dns = DhcpOption::DomainNameServers(vec![addr("fd00::3")]);
    assert_eq!(options.get(OptionCode::DomainNameServers), Some(&dns));
    let Some(DhcpOption::DomainSearchList(names)) = options.get(OptionCode::DomainSearchList) else {
        panic!("{options:?}")
    };
    assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["lab.example.", "example."]);
    let Some(DhcpOption::IANA(ia_na)) = options.get(OptionCode::IANA) else { panic!() };
    assert_eq!((ia_na.id, ia_na.t1, ia_na.t2), (7, 7200, 11_520));
    let lease = server.leases(at(3)).next().unwrap();
    assert_eq!((lease.port, lease.mac, lease.hostname.as_deref()), (P1, MAC.0, Some("build-7")));

    let renew = message(5, &[server_id(), ia(7, &["fd00::15"])]);
    let reply = server.handle(P1, MAC, &renew, at(80_000)).unwrap();
    assert!(reply.grants[0].renewed);
    assert_eq!(server.leases(at(160_000)).count(), 1);

    let release = message(8, &[server_id(), ia(7, &["fd00::15"])]);
    let reply = server.handle(P1, MAC, &release, at(80_001)).unwrap();
    assert_eq!((reply.ended, status(&read(&reply).1)), (true, Some(Status::Success)));
    assert_eq!(server.leases(at(80_001)).count(), 0);
    let reply = server.handle(P1, MAC, &release, at(80_002)).unwrap();
    assert_eq!((reply.ended, leased(&read(&reply).1).1), (false, Some(Status::NoBinding)));
}

#[test]
fn a_rapid_commit_takes_two_messages() {
    let mut server = server();
    let (kind, options) = ask(&mut server, P1, &message(1, &[ia(7, &["fd00::99"]), option(14, &[])]), 1);
    assert_eq!((kind, leased(&options).0), (MessageType::Reply, vec![("fd00::99".to_owned(), 86_400)]));
    assert!(options.get(OptionCode::RapidCommit).is_some());
    assert_eq!(server.leases(at(1)).count(), 1);
}

#[test]
fn a_network_that_was_restarted_knows_its_guests_again() {
    for (kind, ids) in [(5, vec![server_id()]), (6, vec![])] {
        let mut server = server();
        let options = [ids, vec![ia(7, &["fd00::42", "2001:db8::1"])]].concat();
        let (_, options) = ask(&mut server, P1, &message(kind, &options), 1);
        // What it may not keep, it is told to drop.
        let mut addresses = leased(&options).0;
        addresses.sort();
        assert_eq!(addresses, [("2001:db8::1".to_owned(), 0), ("fd00::42".to_owned(), 86_400)]);
    }
}

#[test]
fn a_guest_that_was_elsewhere_is_told_so() {
    let mut server = server();
    let (_, options) = ask(&mut server, P1, &message(4, &[ia(7, &["fd00::77"])]), 1);
    assert_eq!(status(&options), Some(Status::Success));
    let (_, options) = ask(&mut server, P1, &message(4, &[ia(7, &["fd00::77", "fd01::77"])]), 1);
    assert_eq!(status(&options), Some(Status::NotOnLink));
    let empty = server.handle(P1, MAC, &message(4, &[ia(7, &[])]), at(1));
    assert_eq!(empty, Err(DropReason::DhcpIgnored));
}

#[test]
fn an_address_that_is_taken_or_declined_goes_to_nobody_else() {
    let mut server = server();
    ask(&mut server, P1, &message(1, &[ia(7, &[]), option(14, &[])]), 1);
    let (_, options) = ask(&mut server, P2, &message(1, &[ia(7, &["fd00::15"]), option(14, &[])]), 1);
    assert_eq!(leased(&options).0[0].0, "fd00::16");
    ask(&mut server, P1, &message(9, &[server_id(), ia(7, &["fd00::15"])]), 2);
    let (_, options) = ask(&mut server, P1, &message(1, &[ia(7, &["fd00::15"]), option(14, &[])]), 3);
    assert_eq!(leased(&options).0[0].0, "fd00::17");
    // A guest that makes its own addresses is left with them.
    server.note_use(P1, MAC, addr("fd00::18"));
    let (_, options) = ask(&mut server, P2, &message(1, &[ia(8, &["fd00::18"]), option(14, &[])]), 3);
    assert_eq!(leased(&options).0[0].0, "fd00::19");
}

#[test]
fn no_port_holds_more_than_its_share() {
    let mut server = server();
    let mut last = None;
    for id in 0..100 {
        let (_, options) = ask(&mut server, P1, &message(1, &[ia(id, &[]), option(14, &[])]), 1);
        last = leased(&options).1;
    }
    assert_eq!(server.leases(at(1)).count(), server.config.max_per_port);
    assert_eq!(last, Some(Status::NoAddrsAvail));
    server.port_gone(P1);
    assert_eq!(server.leases(at(1)).count(), 0);
}

#[test]
fn a_guest_may_ask_for_settings_alone() {
    let mut server = Server::new(Config { managed: false, ..Config::default() }, GATEWAY);
    // Without a DUID too (RFC 8415 §18.2.6).
    let reply = server.handle(P1, MAC, &[11, 1, 2, 3, 0, 6, 0, 2, 0, 23], at(1)).unwrap();
    let (kind, options) = read(&reply);
    assert_eq!(kind, MessageType::Reply);
    assert!(options.get(OptionCode::DomainNameServers).is_some());
    assert!(options.get(OptionCode::ClientId).is_none());
    let refused = server.handle(P1, MAC, &message(1, &[ia(7, &[])]), at(1));
    assert_eq!(refused, Err(DropReason::DhcpIgnored));
    let mut server = Server::new(Config { restricted: true, ..Config::default() }, GATEWAY);
    let (_, options) = ask(&mut server, P1, &message(11, &[]), 1);
    assert!(options.get(OptionCode::DomainNameServers).is_none());
}

#[test]
fn a_lease_without_dhcp_lasts_as_long_as_the_port() {
    let mut server = server();
    let grant = server.lease(P1, MAC, Some("Box"), at(1)).unwrap();
    assert_eq!(grant, Grant { address: addr("fd00::15"), renewed: false, mac_also_on: None });
    assert_eq!(server.lease(P1, MAC, None, at(2)).unwrap(), Grant { renewed: true, ..grant });
    let year = at(365 * 86_400);
    let lease = server.leases(year).next().unwrap();
    assert_eq!((lease.address, lease.hostname.as_deref()), (grant.address, Some("box")));
    // Should the guest ask after all, it is told of the address that it has.
    let (_, options) = ask(&mut server, P1, &message(1, &[ia(7, &[])]), 365 * 86_400);
    assert_eq!(leased(&options).0, [("fd00::15".to_owned(), 86_400)]);
    server.port_gone(P1);
    assert_eq!(server.leases(year).count(), 0);
}

#[test]
fn prefixes_are_refused_by_name() {
    let (_, options) = ask(&mut server(), P1, &message(1, &[option(25, &[0; 12])]), 1);
    let Some(DhcpOption::IAPD(ia)) = options.get(OptionCode::IAPD) else { panic!("{options:?}") };
    assert_eq!(status(&ia.opts), Some(Status::NoPrefixAvail));
}

#[test]
fn what_is_not_for_this_server_is_passed_over() {
    let mut server = server();
    let mut handle = |message: &[u8]| server.handle(P1, MAC, message, at(1)).unwrap_err();
    let other = option(2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    assert_eq!(handle(&message(3, &[other.clone(), ia(7, &[])])), DropReason::DhcpIgnored);
    assert_eq!(handle(&message(11, &[other])), DropReason::DhcpIgnored);
    assert_eq!(handle(&message(3, &[ia(7, &[])])), DropReason::Dhcp);
    assert_eq!(handle(&message(1, &[server_id(), ia(7, &[])])), DropReason::Dhcp);
    assert_eq!(handle(&[&[1, 1, 2, 3][..], &ia(7, &[])].concat()), DropReason::Dhcp);
    assert_eq!(handle(&message(7, &[ia(7, &[])])), DropReason::DhcpIgnored);
    assert_eq!(handle(&message(1, &[])), DropReason::DhcpIgnored);
}

#[test]
fn lengths_that_lie_are_refused() {
    let mut server = server();
    let mut handle = |message: &[u8]| server.handle(P1, MAC, message, at(1));
    let good = message(1, &[ia(7, &["fd00::20"])]);
    for len in 0..good.len() {
        let whole = len == 4 + 14;
        let expected = if whole { DropReason::DhcpIgnored } else { DropReason::Dhcp };
        assert_eq!(handle(&good[..len]), Err(expected), "{len}");
    }
    for (code, len) in [(1, 0), (1, 2), (1, 131), (3, 11), (25, 0)] {
        assert_eq!(
            handle(&message(1, &[option(code, &vec![0; len])])),
            Err(DropReason::Dhcp),
            "{code} {len}"
        );
    }
    let short_address = option(3, &[&[0; 12][..], &option(5, &[0; 23])].concat());
    assert_eq!(handle(&message(1, &[short_address])), Err(DropReason::Dhcp));
    assert!(handle(&message(1, &[ia(7, &[]), option(39, &[]), option(39, &[0, 200, 65])])).is_ok());
}
