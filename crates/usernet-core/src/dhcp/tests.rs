use dhcproto::Decodable;
use dhcproto::v4::{DhcpOption as O, Message, MessageType as T, OptionCode as C};

use super::*;
use crate::leases::POOL_MAX;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ONE: PortId = PortId(1);
const TWO: PortId = PortId(2);
const GATEWAY: Ipv4Addr = ip(2);
const T0: Instant = Instant::from_micros(1_000_000);

const fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

fn mac(n: u16) -> [u8; 6] {
    let [high, low] = n.to_be_bytes();
    [0x52, 0x54, 0, 0, high, low]
}

fn after(seconds: u64) -> Instant {
    T0 + Duration::from_secs(seconds)
}

/// A message from a guest, as it leaves a DHCP client.
#[derive(Clone)]
struct Ask(Message);

impl Ask {
    fn new(mac: [u8; 6], kind: Option<T>) -> Self {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(0xdead_beef, none, none, none, none, &mac);
        message.set_opts(kind.map(O::MessageType).into_iter().collect());
        Self(message)
    }

    fn with(mut self, option: O) -> Self {
        self.0.opts_mut().insert(option);
        self
    }

    fn id(self, id: &[u8]) -> Self {
        self.with(O::ClientIdentifier(id.to_vec()))
    }

    fn wants(self, address: Ipv4Addr) -> Self {
        self.with(O::RequestedIpAddress(address))
    }

    fn has(mut self, address: Ipv4Addr) -> Self {
        self.0.set_ciaddr(address);
        self
    }

    fn named(self, name: &str) -> Self {
        self.with(O::Hostname(name.to_owned()))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.to_vec().unwrap()
    }
}

fn discover(mac: [u8; 6]) -> Ask {
    Ask::new(mac, Some(T::Discover))
}

fn selecting(mac: [u8; 6], address: Ipv4Addr) -> Ask {
    init_reboot(mac, address).with(O::ServerIdentifier(GATEWAY))
}

fn init_reboot(mac: [u8; 6], address: Ipv4Addr) -> Ask {
    Ask::new(mac, Some(T::Request)).wants(address)
}

fn renewing(mac: [u8; 6], address: Ipv4Addr) -> Ask {
    Ask::new(mac, Some(T::Request)).has(address)
}

/// What a guest reads in a reply.
#[derive(Debug)]
struct Answer {
    reply: Reply,
    message: Message,
}

impl Answer {
    fn kind(&self) -> Option<T> {
        self.message.opts().msg_type()
    }

    fn address(&self) -> Ipv4Addr {
        self.message.yiaddr()
    }

    fn option(&self, code: C) -> Option<O> {
        self.message.opts().get(code).cloned()
    }

    fn codes(&self) -> Vec<u8> {
        self.message.opts().iter().map(|(code, _)| u8::from(*code)).collect()
    }
}

fn ask(server: &mut Server, port: PortId, ask: &Ask, now: Instant) -> Answer {
    try_ask(server, port, ask, now).unwrap()
}

fn try_ask(server: &mut Server, port: PortId, ask: &Ask, now: Instant) -> Result<Answer, DropReason> {
    let reply = server.handle(port, &ask.bytes(), now)?.expect("a reply");
    let message = Message::from_bytes(&reply.payload).unwrap();
    assert_eq!(message.opcode(), Opcode::BootReply);
    assert_eq!(message.xid(), 0xdead_beef);
    assert_eq!(message.chaddr(), ask.0.chaddr());
    assert!(reply.payload.len() >= 300);
    Ok(Answer { reply, message })
}

/// DISCOVER, OFFER, REQUEST, ACK.
fn join(server: &mut Server, port: PortId, mac: [u8; 6], now: Instant) -> Ipv4Addr {
    let offer = ask(server, port, &discover(mac), now);
    assert_eq!(offer.kind(), Some(T::Offer));
    let ack = ask(server, port, &selecting(mac, offer.address()), now);
    assert_eq!(ack.kind(), Some(T::Ack));
    assert_eq!(ack.address(), offer.address());
    ack.address()
}

fn refused(answer: &Answer) -> &str {
    assert_eq!(answer.kind(), Some(T::Nak));
    assert_eq!(answer.reply.to, Destination::Broadcast);
    assert_eq!(answer.reply.grant, None);
    assert_eq!((answer.address(), answer.message.siaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    assert_eq!(answer.message.ciaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(answer.codes(), [53, 54, 56]);
    match answer.message.opts().get(C::Message) {
        Some(O::Message(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn server() -> Server {
    Server::new(Config::default())
}

/// A pool of `size` addresses from 10.0.2.15 on.
fn small(size: u8, max_per_port: usize) -> Server {
    Server::new(Config { end: Some(ip(14 + size)), max_per_port, ..Config::default() })
}

#[test]
fn a_guest_gets_its_address_and_all_settings() {
    let mut server = Server::new(Config {
        hostname: Some("Guest".into()),
        domain: Some("example.org".into()),
        search: vec!["a.example.org".into(), "example.org".into()],
        tftp_server: Some("boot.example.org".into()),
        bootfile: Some("http://10.0.2.2/boot.efi".into()),
        mtu: 9000,
        ..Config::default()
    });
    let offer = ask(&mut server, ONE, &discover(MAC), T0);
    let ack = ask(&mut server, ONE, &selecting(MAC, ip(15)).named("vm"), T0);
    assert_eq!(offer.kind(), Some(T::Offer));
    assert_eq!(offer.reply.grant, None);
    assert_eq!(ack.kind(), Some(T::Ack));
    assert_eq!(ack.reply.grant, Some(Grant { address: ip(15), renewed: false, mac_also_on: None }));
    for answer in [offer, ack] {
        assert_eq!(answer.address(), ip(15));
        assert_eq!(answer.message.siaddr(), GATEWAY);
        assert_eq!(answer.message.fname(), Some(&b"http://10.0.2.2/boot.efi\0"[..]));
        assert_eq!(answer.reply.to, Destination::Unicast { mac: MAC, address: ip(15) });
        let search = ["a.example.org.", "example.org."].map(|name| Name::from_ascii(name).unwrap());
        for option in [
            O::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            O::Router(vec![GATEWAY]),
            O::DomainNameServer(vec![ip(3)]),
            O::Hostname("Guest".into()),
            O::DomainName("example.org".into()),
            O::InterfaceMtu(9000),
            O::AddressLeaseTime(86_400),
            O::ServerIdentifier(GATEWAY),
            O::Renewal(43_200),
            O::Rebinding(75_600),
            O::ClassIdentifier(b"HTTPClient".to_vec()),
            O::TFTPServerName(b"boot.example.org".to_vec()),
            O::BootfileName(b"http://10.0.2.2/boot.efi".to_vec()),
            O::DomainSearch(search.to_vec()),
        ] {
            assert_eq!(answer.option((&option).into()), Some(option));
        }
        assert_eq!(answer.codes(), [1, 3, 6, 12, 15, 26, 51, 53, 54, 58, 59, 60, 66, 67, 119]);
    }
    let lease = Lease {
        port: ONE,
        mac: MAC,
        client_id: None,
        address: ip(15),
        hostname: Some("vm".into()),
        expires: Some(after(86_400)),
    };
    assert_eq!(server.leases(T0).collect::<Vec<_>>(), [&lease]);
    assert_eq!(server.lease_of(ip(15), T0), Some(&lease));
}

#[test]
fn a_plain_network_says_only_what_it_has() {
    let mut server = Server::new(Config { tftp_server: Some("10.0.2.9".into()), ..Config::default() });
    let offer = ask(&mut server, ONE, &discover(MAC), T0);
    assert_eq!(offer.codes(), [1, 3, 6, 26, 51, 53, 54, 58, 59, 66]);
    assert_eq!(offer.message.siaddr(), ip(9));
    assert_eq!(offer.message.fname(), None);

    let mut server = Server::new(Config { restricted: true, ..Config::default() });
    assert_eq!(ask(&mut server, ONE, &discover(MAC), T0).codes(), [1, 26, 51, 53, 54, 58, 59]);
}

#[test]
fn replies_go_where_the_guest_can_take_them() {
    let mut server = server();
    let mut broadcast = discover(MAC);
    broadcast.0.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    let offer = ask(&mut server, ONE, &broadcast, T0);
    assert_eq!(offer.reply.to, Destination::Broadcast);
    assert!(offer.message.flags().broadcast());

    join(&mut server, ONE, MAC, T0);
    let mut renewal = renewing(MAC, ip(15));
    renewal.0.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    let ack = ask(&mut server, ONE, &renewal, T0);
    assert_eq!(ack.reply.to, Destination::Unicast { mac: MAC, address: ip(15) });
    assert_eq!(ack.message.ciaddr(), ip(15));
}

#[test]
fn a_client_identifier_comes_back() {
    let mut server = server();
    let offer = ask(&mut server, ONE, &discover(MAC).id(b"\xffduid"), T0);
    assert_eq!(offer.option(C::ClientIdentifier), Some(O::ClientIdentifier(b"\xffduid".to_vec())));
}

#[test]
fn long_search_lists_are_split_and_cut_to_what_the_guest_takes() {
    let names: Vec<String> = (0..60).map(|n| format!("department-{n}.example{n}.org")).collect();
    let mut server = Server::new(Config { search: names.clone(), ..Config::default() });
    let list = |answer: &Answer| match answer.option(C::DomainSearch) {
        Some(O::DomainSearch(list)) => list.iter().map(ToString::to_string).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };

    let large = ask(&mut server, ONE, &discover(MAC).with(O::MaxMessageSize(1500)), T0);
    assert!(large.reply.payload.len() > 576 && large.reply.payload.len() <= 1472);
    let pieces = large.reply.payload.windows(2).filter(|pair| *pair == [119, 255]).count();
    assert!(pieces >= 2, "an option holds 255 bytes");
    let large = list(&large);
    assert!(large.iter().zip(&names).all(|(got, name)| got.trim_end_matches('.') == name));

    let small = ask(&mut server, ONE, &discover(MAC), T0);
    assert!(small.reply.payload.len() <= 548);
    let small = list(&small);
    assert!(!small.is_empty() && small.len() < large.len());
    assert_eq!(small, large[..small.len()]);
}

#[test]
fn requests_in_every_state() {
    let mut server = server();
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(15));
    for (at, request) in
        [(10, selecting(MAC, ip(15))), (20, init_reboot(MAC, ip(15))), (30, renewing(MAC, ip(15)))]
    {
        let ack = ask(&mut server, ONE, &request, after(at));
        assert_eq!((ack.kind(), ack.address()), (Some(T::Ack), ip(15)));
        assert_eq!(ack.reply.grant, Some(Grant { address: ip(15), renewed: true, mac_also_on: None }));
        assert_eq!(server.lease_of(ip(15), after(at)).unwrap().expires, Some(after(at + 86_400)));
    }
    assert_eq!(server.leases(after(30)).count(), 1);
}

#[test]
fn refusals_say_why() {
    let mut server = server();
    join(&mut server, ONE, MAC, T0);
    join(&mut server, TWO, mac(2), T0);
    let foreign = Ipv4Addr::new(192, 168, 1, 7);
    let new = mac(3);
    for (request, why) in [
        (selecting(new, foreign), "the address is not on this network"),
        (init_reboot(new, foreign), "the address is not on this network"),
        (renewing(new, foreign), "the address is not on this network"),
        (selecting(new, ip(15)), "the address is in use"),
        (init_reboot(new, ip(15)), "the address is in use"),
        (renewing(new, ip(15)), "the address is in use"),
        (init_reboot(new, GATEWAY), "the address is not for lease"),
        (init_reboot(new, ip(3)), "the address is not for lease"),
        (init_reboot(new, ip(14)), "the address is not for lease"),
        (init_reboot(new, ip(255)), "the address is not for lease"),
        (init_reboot(mac(2), ip(99)), "another address is leased to this client"),
    ] {
        assert_eq!(refused(&ask(&mut server, TWO, &request, T0)), why, "{:?}", request.0);
    }
    let mut held: Vec<_> = server.leases(T0).map(|lease| (lease.port, lease.address)).collect();
    held.sort();
    assert_eq!(held, [(ONE, ip(15)), (TWO, ip(16))]);
}

#[test]
fn a_guest_that_remembers_keeps_its_address_over_a_restart() {
    for request in [init_reboot(MAC, ip(77)), renewing(MAC, ip(77))] {
        let mut server = server();
        let ack = ask(&mut server, ONE, &request, T0);
        assert_eq!((ack.kind(), ack.address()), (Some(T::Ack), ip(77)));
        assert_eq!(server.leases(T0).count(), 1);
    }
}

#[test]
fn a_guest_that_starts_anew_after_the_network_did_keeps_its_address() {
    let mut server = server();
    server.note_use(ONE, MAC, ip(17));
    assert_eq!(join(&mut server, TWO, mac(2), T0), ip(15));
    // Whoever has the same card on another port has not used it.
    assert_eq!(join(&mut server, TWO, MAC, T0), ip(16));
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(17));
}

#[test]
fn a_request_to_another_server_gives_the_offer_back() {
    let mut server = server();
    ask(&mut server, ONE, &discover(MAC), T0);
    let other = init_reboot(MAC, ip(15)).with(O::ServerIdentifier(ip(9)));
    assert_eq!(try_ask(&mut server, ONE, &other, T0).unwrap_err(), DropReason::DhcpIgnored);
    assert_eq!(join(&mut server, TWO, mac(2), T0), ip(15));
}

#[test]
fn a_request_for_nothing_is_malformed() {
    let request = Ask::new(MAC, Some(T::Request));
    assert_eq!(try_ask(&mut server(), ONE, &request, T0).unwrap_err(), DropReason::Dhcp);
}

#[test]
fn a_discover_may_ask_for_an_address() {
    let mut server = server();
    assert_eq!(ask(&mut server, ONE, &discover(MAC).wants(ip(40)), T0).address(), ip(40));
    // In use, the server's own, below the pool, on another network: the first that is free.
    for wanted in [ip(40), GATEWAY, ip(3), ip(4), ip(255), Ipv4Addr::new(192, 168, 1, 7)] {
        assert_eq!(ask(&mut server, TWO, &discover(mac(2)).wants(wanted), T0).address(), ip(15));
    }
}

#[test]
fn an_offer_lasts_a_minute() {
    let mut server = small(1, 32);
    ask(&mut server, ONE, &discover(MAC), T0);
    assert_eq!(server.leases(T0).count(), 0);
    let taken = init_reboot(mac(2), ip(15));
    assert_eq!(refused(&ask(&mut server, TWO, &taken, after(59))), "the address is in use");
    assert_eq!(ask(&mut server, TWO, &taken, after(60)).kind(), Some(T::Ack));
    // The first guest comes too late.
    assert_eq!(refused(&ask(&mut server, ONE, &selecting(MAC, ip(15)), after(61))), "the address is in use");
}

#[test]
fn a_lease_runs_out() {
    let mut server = small(1, 32);
    join(&mut server, ONE, MAC, T0);
    let late = after(86_400);
    assert_eq!(
        try_ask(&mut server, TWO, &discover(mac(2)), after(86_399)).unwrap_err(),
        DropReason::DhcpExhausted
    );
    assert_eq!(server.leases(late).count(), 0);
    assert_eq!(server.lease_of(ip(15), late), None);
    assert_eq!(join(&mut server, TWO, mac(2), late), ip(15));
}

#[test]
fn a_declined_address_is_set_aside() {
    let mut server = server();
    join(&mut server, ONE, MAC, T0);
    let decline = Ask::new(MAC, Some(T::Decline)).wants(ip(15)).with(O::ServerIdentifier(GATEWAY));
    assert_eq!(server.handle(ONE, &decline.bytes(), T0), Ok(None));
    assert_eq!(server.leases(T0).count(), 0);
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(16));
    assert_eq!(ask(&mut server, TWO, &discover(mac(2)).wants(ip(15)), T0).address(), ip(17));
    assert_eq!(ask(&mut server, TWO, &discover(mac(3)).wants(ip(15)), after(600)).address(), ip(15));
}

#[test]
fn a_guest_declines_and_releases_only_its_own() {
    let mut server = server();
    join(&mut server, ONE, MAC, T0);
    for message in [
        Ask::new(mac(2), Some(T::Decline)).wants(ip(15)),
        Ask::new(MAC, Some(T::Decline)).wants(ip(15)),
        Ask::new(mac(2), Some(T::Release)).has(ip(15)),
        Ask::new(MAC, Some(T::Release)).has(ip(15)),
    ] {
        assert_eq!(server.handle(TWO, &message.bytes(), T0), Err(DropReason::DhcpIgnored));
    }
    assert_eq!(server.lease_of(ip(15), T0).unwrap().port, ONE);
}

#[test]
fn a_guest_that_declines_everything_does_not_eat_the_pool() {
    let mut server = small(40, 8);
    for n in 0..100 {
        let address = join(&mut server, ONE, mac(n), T0);
        let decline = Ask::new(mac(n), Some(T::Decline)).wants(address);
        assert_eq!(server.handle(ONE, &decline.bytes(), T0), Ok(None));
    }
    for n in 200..232 {
        join(&mut server, PortId(n.into()), mac(n), T0);
    }
    assert_eq!(server.leases(T0).count(), 32);
}

#[test]
fn a_released_address_is_kept_for_its_guest_while_it_can_be() {
    let mut server = small(2, 32);
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(15));
    let release = Ask::new(MAC, Some(T::Release)).has(ip(15));
    assert_eq!(server.handle(ONE, &release.bytes(), T0), Ok(None));
    assert_eq!(server.leases(T0).count(), 0);
    assert_eq!(join(&mut server, TWO, mac(2), T0), ip(16));
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(15));
    assert_eq!(server.handle(ONE, &release.bytes(), T0), Ok(None));
    assert_eq!(join(&mut server, TWO, mac(3), T0), ip(15));
}

#[test]
fn inform_is_answered_without_a_lease() {
    let mut server = server();
    let ack = ask(&mut server, ONE, &Ask::new(MAC, Some(T::Inform)).has(ip(200)), T0);
    assert_eq!((ack.kind(), ack.address()), (Some(T::Ack), Ipv4Addr::UNSPECIFIED));
    assert_eq!(ack.codes(), [1, 3, 6, 26, 53, 54]);
    assert_eq!(ack.reply.to, Destination::Unicast { mac: MAC, address: ip(200) });
    assert_eq!(ack.reply.grant, None);
    assert_eq!(server.leases(T0).count(), 0);

    let lost = ask(&mut server, ONE, &Ask::new(MAC, Some(T::Inform)), T0);
    assert_eq!(lost.reply.to, Destination::Broadcast);
}

#[test]
fn bootp_gets_an_address_for_good() {
    let domain = Some(format!("{}.example.org", "x".repeat(60)));
    let mut server = Server::new(Config { domain, ..Config::default() });
    let reply = ask(&mut server, ONE, &Ask::new(MAC, None), T0);
    assert_eq!((reply.kind(), reply.address()), (None, ip(15)));
    // 300 bytes are what a BOOTP client takes: no room for the domain.
    assert_eq!(reply.reply.payload.len(), 300);
    assert_eq!(reply.codes(), [1, 3, 6, 26]);
    assert_eq!(server.lease_of(ip(15), after(1_000_000)).unwrap().expires, None);
}

#[test]
fn two_guests_get_two_addresses() {
    let mut server = server();
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(15));
    assert_eq!(join(&mut server, TWO, mac(2), T0), ip(16));
    assert_eq!(server.lease_of(ip(15), T0).unwrap().mac, MAC);
    assert_eq!(server.lease_of(ip(16), T0).unwrap().mac, mac(2));
}

#[test]
fn one_mac_on_two_ports_is_two_guests_and_is_told() {
    let mut server = server();
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(15));
    let offer = ask(&mut server, TWO, &discover(MAC), T0);
    assert_eq!(offer.address(), ip(16));
    let ack = ask(&mut server, TWO, &selecting(MAC, ip(16)), T0);
    assert_eq!(ack.reply.grant, Some(Grant { address: ip(16), renewed: false, mac_also_on: Some(ONE) }));
    assert_eq!(server.lease(TWO, MAC, None, T0).unwrap().mac_also_on, Some(ONE));
    assert_eq!(ask(&mut server, ONE, &renewing(MAC, ip(15)), T0).kind(), Some(T::Ack));
}

#[test]
fn firmware_and_operating_system_share_an_address() {
    let mut server = server();
    assert_eq!(join(&mut server, ONE, MAC, T0), ip(15));
    let says_mac = [&[1], &MAC[..]].concat();
    assert_eq!(ask(&mut server, ONE, &selecting(MAC, ip(15)).id(&says_mac), T0).address(), ip(15));
    let duid = ask(&mut server, ONE, &selecting(MAC, ip(15)).id(b"\xff\0duid"), T0);
    assert_eq!(duid.kind(), Some(T::Ack));
    assert_eq!(server.lease_of(ip(15), T0).unwrap().client_id.as_deref(), Some(&b"\xff\0duid"[..]));
    // The identifier counts for more than the MAC.
    assert_eq!(ask(&mut server, ONE, &discover(mac(9)).id(b"\xff\0duid"), T0).address(), ip(15));
    assert_eq!(ask(&mut server, ONE, &discover(MAC).id(b"\xff\0other"), T0).address(), ip(16));
    assert_eq!(server.leases(T0).count(), 1);
}

#[test]
fn a_port_holds_only_so_many() {
    let mut server = small(40, 8);
    // Offers: its own oldest goes first.
    for n in 0..100 {
        ask(&mut server, ONE, &discover(mac(n)), T0);
    }
    for n in 100..108 {
        join(&mut server, ONE, mac(n), T0);
    }
    for request in [discover(mac(200)), init_reboot(mac(200), ip(50)), Ask::new(mac(200), None)] {
        assert_eq!(try_ask(&mut server, ONE, &request, T0).unwrap_err(), DropReason::DhcpExhausted);
    }
    assert_eq!(server.lease(ONE, mac(200), None, T0), Err(DropReason::DhcpExhausted));
    // It keeps what it has, and others are served.
    let first = server.leases(T0).find(|lease| lease.mac == mac(100)).unwrap().address;
    assert_eq!(ask(&mut server, ONE, &renewing(mac(100), first), T0).kind(), Some(T::Ack));
    for n in 300..332 {
        join(&mut server, PortId(n.into()), mac(n), T0);
    }
    assert_eq!(server.leases(T0).count(), 40);
}

#[test]
fn offers_do_not_keep_a_small_pool_from_others() {
    let mut server = small(3, 32);
    for n in 0..100 {
        ask(&mut server, ONE, &discover(mac(n)), T0);
    }
    join(&mut server, TWO, mac(200), T0);
}

#[test]
fn an_exhausted_pool_is_told_and_recovers() {
    let mut server = small(3, 32);
    for n in 1..=3 {
        join(&mut server, PortId(n.into()), mac(n), T0);
    }
    assert_eq!(
        try_ask(&mut server, PortId(4), &discover(mac(4)), T0).unwrap_err(),
        DropReason::DhcpExhausted
    );
    server.port_gone(PortId(2));
    assert_eq!(join(&mut server, PortId(4), mac(4), T0), ip(16));
}

#[test]
fn a_guest_that_comes_back_gets_its_address_on_any_port() {
    let mut server = small(3, 32);
    assert_eq!(join(&mut server, ONE, mac(1), T0), ip(15));
    assert_eq!(join(&mut server, TWO, mac(2), T0), ip(16));
    ask(&mut server, ONE, &discover(mac(9)), T0);
    server.port_gone(TWO);
    server.port_gone(ONE);
    assert_eq!(server.leases(T0).count(), 0);
    assert_eq!(join(&mut server, PortId(3), mac(1), T0), ip(15));
    server.port_gone(PortId(3));
    // A newcomer takes what nobody has held, then what has been free the longest.
    assert_eq!(join(&mut server, PortId(4), mac(4), T0), ip(17));
    assert_eq!(join(&mut server, PortId(5), mac(5), T0), ip(16));
    assert_eq!(join(&mut server, PortId(6), mac(1), T0), ip(15));
}

#[test]
fn a_lease_without_dhcp_lasts_as_long_as_the_port() {
    let mut server = server();
    let grant = server.lease(ONE, MAC, Some("Box"), T0).unwrap();
    assert_eq!(grant, Grant { address: ip(15), renewed: false, mac_also_on: None });
    assert_eq!(server.lease(ONE, MAC, None, T0).unwrap(), Grant { renewed: true, ..grant });
    let year = after(365 * 86_400);
    assert_eq!(join(&mut server, TWO, mac(2), year), ip(16));
    assert_eq!(server.lease_of(ip(15), year).unwrap().hostname.as_deref(), Some("box"));
    server.port_gone(ONE);
    assert_eq!(server.lease_of(ip(15), year), None);
}

#[test]
fn host_names_are_labels_and_belong_to_the_first() {
    let name_of = |name: &str| {
        let mut server = server();
        ask(&mut server, ONE, &init_reboot(MAC, ip(15)).named(name), T0);
        server.leases(T0).next().unwrap().hostname.clone()
    };
    assert_eq!(name_of("Build_Box 7.example.org").as_deref(), Some("build-box-7"));
    assert_eq!(name_of("--vm\0--").as_deref(), Some("vm"));
    assert_eq!(name_of("Zoë").as_deref(), Some("zo"));
    assert_eq!(name_of("...").as_deref(), None);
    assert_eq!(name_of(&"x".repeat(400)), Some("x".repeat(63)));

    let mut server = server();
    ask(&mut server, ONE, &init_reboot(MAC, ip(15)).named("vm"), T0);
    let second = init_reboot(mac(2), ip(16)).named("VM");
    ask(&mut server, TWO, &second, T0);
    let name = |server: &Server, address| server.lease_of(address, T0).unwrap().hostname.clone();
    assert_eq!(name(&server, ip(15)).as_deref(), Some("vm"));
    assert_eq!(name(&server, ip(16)), None);
    // A renewal without the option keeps the name.
    ask(&mut server, ONE, &renewing(MAC, ip(15)), T0);
    assert_eq!(name(&server, ip(15)).as_deref(), Some("vm"));
    server.port_gone(ONE);
    ask(&mut server, TWO, &second, T0);
    assert_eq!(name(&server, ip(16)).as_deref(), Some("vm"));
}

#[test]
fn a_nameless_guest_is_known_by_the_name_it_is_given() {
    let mut server = Server::new(Config { hostname: Some("Given".into()), ..Config::default() });
    join(&mut server, ONE, MAC, T0);
    join(&mut server, TWO, mac(2), T0);
    let names: Vec<_> = server.leases(T0).map(|lease| lease.hostname.as_deref()).collect();
    assert_eq!(names, [Some("given"), None]);
}

#[test]
fn two_hundred_guests_in_turn_leave_nothing_behind() {
    let mut server = small(10, 32);
    for n in 0..200 {
        let port = PortId(n.into());
        join(&mut server, port, mac(n), T0);
        ask(&mut server, port, &discover(mac(1000 + n)), T0);
        server.port_gone(port);
        assert_eq!(server.leases(T0).count(), 0);
    }
    for n in 500..510 {
        join(&mut server, PortId(n.into()), mac(n), T0);
    }
    assert_eq!(server.leases(T0).count(), 10);
}

#[test]
fn pools_stay_inside_of_the_network_and_its_bound() {
    let addresses = |config: Config| {
        let mut server = Server::new(Config { max_per_port: usize::MAX, ..config });
        (0..).map_while(|n| Some(server.lease(ONE, mac(n), None, T0).ok()?.address)).collect::<Vec<_>>()
    };
    let tiny = Config { start: ip(0), prefix_len: 29, ..Config::default() };
    assert_eq!(addresses(tiny.clone()), [ip(1), ip(4), ip(5), ip(6)]);
    assert_eq!(addresses(Config { end: Some(ip(200)), ..tiny.clone() }).len(), 4);
    assert!(addresses(Config { start: ip(100), ..tiny }).is_empty());
    for prefix_len in [0, 31, 32, 255] {
        let whole = Config { prefix_len, ..Config::default() };
        assert!(Server::new(whole).handle(ONE, &discover(MAC).bytes(), T0).is_ok() == (prefix_len == 0));
    }
    let mut large = Server::new(Config { prefix_len: 8, ..Config::default() });
    let at = |n| Ipv4Addr::from(u32::from(ip(15)) + n);
    assert_eq!(ask(&mut large, ONE, &discover(MAC).wants(at(POOL_MAX - 1)), T0).address(), at(POOL_MAX - 1));
    assert_eq!(ask(&mut large, ONE, &discover(mac(2)).wants(at(POOL_MAX)), T0).address(), ip(15));
}

#[test]
fn what_is_no_request_to_this_server_is_ignored() {
    let mut relayed = discover(MAC);
    relayed.0.set_giaddr(ip(9));
    let mut reply = discover(MAC);
    reply.0.set_opcode(Opcode::BootReply);
    for ask in [relayed, reply, Ask::new(MAC, Some(T::Offer)), Ask::new(MAC, Some(T::Unknown(99)))] {
        assert_eq!(server().handle(ONE, &ask.bytes(), T0), Err(DropReason::DhcpIgnored));
    }
}

#[test]
fn malformed_messages_are_refused() {
    let good = discover(MAC).bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut message = good.clone();
        message.splice(at..at + bytes.len(), bytes.iter().copied());
        message
    };
    let options = |bytes: &[u8]| [&good[..240], bytes].concat();
    for (what, message) in [
        ("hlen 255", with(2, &[255])),
        ("hlen 17", with(2, &[17])),
        ("hlen 0", with(2, &[0])),
        ("not Ethernet", with(1, &[6])),
        ("multicast MAC", with(28, &[0xff])),
        ("no MAC", with(28, &[0; 6])),
        ("no cookie", with(236, &[0; 4])),
        ("empty message type", options(&[53, 0, 255])),
        ("long message type", options(&[53, 2, 1, 1, 255])),
        ("short requested address", options(&[53, 1, 1, 50, 3, 10, 0, 2, 255])),
        ("short server", options(&[53, 1, 3, 54, 1, 10, 255])),
        (
            "endless client identifier",
            options(&[&[53, 1, 1][..], &[61, 200], &[7; 200], &[61, 200], &[7; 200]].concat()),
        ),
    ] {
        assert_eq!(server().handle(ONE, &message, T0), Err(DropReason::Dhcp), "{what}");
    }
    for len in 0..240 {
        assert_eq!(server().handle(ONE, &good[..len], T0), Err(DropReason::Dhcp));
    }
}

#[test]
fn options_that_the_server_does_not_read_hide_nothing() {
    // Lengths with which a decoder for all options panics or stops, in front of the message type.
    let odd =
        [[80, 1, 9].as_slice(), &[81, 1, 0], &[81, 4, 0, 0, 0, 63], &[94, 1, 1], &[151, 0], &[12, 1, 0xff]];
    let mut message = discover(MAC).bytes();
    message.truncate(240);
    message.extend(odd.concat());
    message.extend([53, 1, 1, 255]);
    let reply = server().handle(ONE, &message, T0).unwrap().unwrap();
    assert_eq!(Message::from_bytes(&reply.payload).unwrap().opts().msg_type(), Some(T::Offer));
}

/// Random and mutated messages from two ports: no panic, and the bounds hold.
#[test]
fn nothing_that_a_guest_sends_breaks_the_server() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut server = small(20, 6);
    let kinds = [T::Discover, T::Request, T::Decline, T::Release, T::Inform, T::Unknown(77)];
    let mut now = T0;
    let mut replies = 0;
    for _ in 0..50_000 {
        let port = if random.below(2) == 0 { ONE } else { TWO };
        let mut message = if random.below(10) == 0 {
            (0..random.below(700)).map(|_| random.byte()).collect()
        } else {
            let kind = kinds.get(random.below(7)).copied();
            let mut ask = Ask::new(mac(u16::from(random.byte() % 16)), kind);
            let address = ip(10 + random.byte() % 30);
            for _ in 0..random.below(4) {
                ask = match random.below(6) {
                    0 => ask.wants(address),
                    1 => ask.has(address),
                    2 => ask.id(&vec![random.byte() % 4; random.below(260)]),
                    3 => ask.with(O::ServerIdentifier(GATEWAY)),
                    4 => ask.with(O::MaxMessageSize(u16::from(random.byte()) * 16)),
                    _ => ask.named("guest"),
                };
            }
            ask.bytes()
        };
        if random.below(2) == 0 {
            for _ in 0..1 + random.below(8) {
                let at = random.below(message.len().max(1));
                if let Some(byte) = message.get_mut(at) {
                    *byte = random.byte();
                }
            }
            message.truncate(if random.below(4) == 0 { random.below(message.len() + 1) } else { usize::MAX });
        }
        if let Ok(Some(reply)) = server.handle(port, &message, now) {
            assert!((300..=1472).contains(&reply.payload.len()));
            replies += 1;
        }
        match random.below(200) {
            0 => server.port_gone(port),
            1..10 => now += Duration::from_secs(30),
            _ => {}
        }
        let leases: Vec<_> = server.leases(now).collect();
        for port in [ONE, TWO] {
            assert!(leases.iter().filter(|lease| lease.port == port).count() <= 6);
        }
        assert!(leases.iter().all(|lease| (ip(15)..=ip(34)).contains(&lease.address)));
        assert!(leases.iter().filter(|lease| lease.hostname.as_deref() == Some("guest")).count() <= 1);
    }
    assert!(replies > 1000, "{replies} replies: the messages do not reach the table");
}

/// xorshift64 (Marsaglia, 2003): the same messages on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[1]
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap() % end
    }
}
