//! With a real TAP device, in a user and network namespace of its own for each test.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::wire::*;
use usernet_core::offload::Checksum;

use super::*;
use crate::inspect::{self, Packet, Template};
use crate::segment::finish_checksum;
use crate::stream::StreamLink;

const OUR_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
const GUEST_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const OURS: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const GUEST: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);

/// Runs the test of this name again in new namespaces; there it returns `true`, here `false`.
///
/// A threaded process cannot leave its user namespace, so the test is a child process there.
fn in_namespace(test: &str) -> bool {
    const INSIDE: &str = "USERNET_LINK_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let output = Command::new("unshare")
        .args(["--user", "--net", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("tap::tests::{test}"), "--nocapture"])
        .env(INSIDE, "")
        .output()
        .expect("unshare (util-linux) runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) runs");
    assert!(status.success(), "ip {arguments}");
}

/// A TAP device whose kernel is the guest 10.0.2.15 and knows us as 10.0.2.2.
struct Tap {
    link: Link,
    name: String,
}

impl Tap {
    fn new() -> Self {
        let (link, name) = TapLink::open("").unwrap();
        ip(&format!("link set {name} address 52:54:00:12:34:56 up"));
        ip(&format!("addr add {GUEST}/24 dev {name}"));
        ip(&format!("neigh add {OURS} lladdr 52:55:0a:00:02:02 dev {name}"));
        Self { link, name }
    }

    /// What `find` makes of the first frame that it takes; it may wait for ten seconds.
    fn wait_for<T>(&mut self, mut find: impl FnMut(&[u8], Offload) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            while let Some(count) = self.link.rx.receive().unwrap() {
                for index in 0..count {
                    let mut frame = vec![0; self.link.rx.frame_len(index)];
                    assert_eq!(self.link.rx.copy_to(index, 0, &mut frame), frame.len());
                    if let Some(found) = find(&frame, self.link.rx.offload(index)) {
                        return found;
                    }
                }
            }
            assert!(Instant::now() < deadline, "the frame did not come");
            let mut fds = [PollFd::from_borrowed_fd(self.link.rx.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        }
    }

    fn send(&mut self, frame: &[u8], offload: Offload) {
        assert!(self.link.tx.send(&[IoSlice::new(frame)], offload).unwrap());
        assert!(self.link.tx.flush().unwrap());
    }

    /// The headers of an IPv4 packet for the guest, with `transport` behind them.
    fn frame(protocol: IpProtocol, transport: &[u8]) -> Vec<u8> {
        let ethernet =
            EthernetRepr { src_addr: OUR_MAC, dst_addr: GUEST_MAC, ethertype: EthernetProtocol::Ipv4 };
        let ip = Ipv4Repr {
            src_addr: OURS,
            dst_addr: GUEST,
            next_header: protocol,
            payload_len: transport.len(),
            hop_limit: 64,
        };
        let mut frame = vec![0; 34];
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &Default::default());
        frame.extend(transport);
        frame
    }

    /// A TCP segment for the guest, whose checksum field holds the pseudo-header's sum.
    fn tcp(repr: &TcpRepr<'_>) -> Vec<u8> {
        let mut segment = vec![0; repr.buffer_len()];
        let mut unsummed = smoltcp::phy::ChecksumCapabilities::default();
        unsummed.tcp = smoltcp::phy::Checksum::None;
        let mut packet = TcpPacket::new_unchecked(&mut segment[..]);
        repr.emit(&mut packet, &OURS.into(), &GUEST.into(), &unsummed);
        let len = u32::try_from(repr.buffer_len()).unwrap();
        packet.set_checksum(checksum::pseudo_header(&OURS.into(), &GUEST.into(), IpProtocol::Tcp, len));
        Self::frame(IpProtocol::Tcp, &segment)
    }
}

const TCP_CHECKSUM: Checksum = Checksum::Partial { start: 34, offset: 16 };

/// A TCP segment of a flow between our port 4000 and the guest's `port`.
fn tcp_repr<'a>(port: u16, control: TcpControl, seq: TcpSeqNumber, ack: Option<TcpSeqNumber>) -> TcpRepr<'a> {
    TcpRepr {
        src_port: 4000,
        dst_port: port,
        control,
        seq_number: seq,
        ack_number: ack,
        window_len: 65_535,
        window_scale: (control == TcpControl::Syn).then_some(7),
        max_seg_size: (control == TcpControl::Syn).then_some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

#[test]
fn a_datagram_out_of_the_kernel_arrives() {
    if !in_namespace("a_datagram_out_of_the_kernel_arrives") {
        return;
    }
    let mut tap = Tap::new();
    let socket = UdpSocket::bind((GUEST, 5000)).unwrap();
    socket.send_to(b"out of the kernel", (OURS, 4000)).unwrap();
    let packet =
        tap.wait_for(|frame, offload| ipv4(frame, IpProtocol::Udp).map(|_| finished(frame, offload)));
    assert_eq!(packet.ports, (5000, 4000));
    assert_eq!(packet.payload, b"out of the kernel");
    assert_eq!(tap.link.rx.dropped(), 0);
}

/// What lies behind the IPv4 header, where that is the protocol. The neighbour discovery of a new
/// interface is on its way, too.
fn ipv4(frame: &[u8], protocol: IpProtocol) -> Option<&[u8]> {
    (frame[12..14] == [8, 0] && frame[23] == protocol.into()).then(|| &frame[34..])
}

/// Reads a frame that is one packet, its checksum finished.
fn finished(frame: &[u8], offload: Offload) -> Packet {
    let mut frame = frame.to_vec();
    assert_eq!(offload.segmentation, None);
    assert!(finish_checksum(&mut frame, offload.checksum));
    inspect::packet(&frame)
}

#[test]
fn an_echo_reply_returns() {
    if !in_namespace("an_echo_reply_returns") {
        return;
    }
    let mut tap = Tap::new();
    let echo = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: b"echo" };
    let mut packet = vec![0; echo.buffer_len()];
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[..]), &Default::default());
    let frame = Tap::frame(IpProtocol::Icmp, &packet);
    tap.send(&frame, Offload::default());
    tap.wait_for(|frame, _| {
        let packet = Icmpv4Packet::new_checked(ipv4(frame, IpProtocol::Icmp)?).unwrap();
        let is_reply = packet.msg_type() == Icmpv4Message::EchoReply;
        is_reply.then(|| assert_eq!((packet.echo_ident(), packet.data()), (7, &b"echo"[..])))
    });
}

#[test]
fn super_frames_go_both_ways() {
    if !in_namespace("super_frames_go_both_ways") {
        return;
    }
    let mut tap = Tap::new();
    let listener = TcpListener::bind((GUEST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let partial = Offload { checksum: TCP_CHECKSUM, ..Offload::default() };

    // The handshake, by hand.
    let iss = TcpSeqNumber(1000);
    let syn = Tap::tcp(&tcp_repr(port, TcpControl::Syn, iss, None));
    tap.send(&syn, partial);
    let irs = tap.wait_for(|frame, offload| {
        ipv4(frame, IpProtocol::Tcp).map(|segment| {
            assert_eq!(offload, partial, "the kernel leaves its checksums to us");
            TcpPacket::new_checked(segment).unwrap().seq_number()
        })
    });
    let ack = tcp_repr(port, TcpControl::None, iss + 1, Some(irs + 1));
    let frame = Tap::tcp(&ack);
    tap.send(&frame, partial);
    let (mut guest, _) = listener.accept().unwrap();

    // To the guest: 60 KB in one write, put into place by the reader of the host's socket.
    let payload = inspect::payload(60_000);
    let mut header = Tap::tcp(&ack);
    let transport = 20 + payload.len();
    let mut tcp = TcpPacket::new_unchecked(&mut header[34..]);
    let transport_len = u32::try_from(transport).unwrap();
    tcp.set_checksum(checksum::pseudo_header(&OURS.into(), &GUEST.into(), IpProtocol::Tcp, transport_len));
    let mut packet = Ipv4Packet::new_unchecked(&mut header[14..34]);
    packet.set_total_len(u16::try_from(20 + transport).unwrap());
    packet.fill_checksum();
    let mut room = Vec::new();
    let max = tap.link.tx.reserve(header.len(), 1460, usize::MAX, &mut room);
    assert!((60_000..65_536).contains(&max));
    room[0][..60_000].copy_from_slice(&payload);
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: 1460, header_len: 54 };
    let offload = Offload { checksum: TCP_CHECKSUM, segmentation: Some(segmentation), fragmentation: None };
    tap.link.tx.commit(&header, payload.len(), offload).unwrap();
    guest.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut received = vec![0; 60_000];
    guest.read_exact(&mut received).unwrap();
    assert!(received == payload);
    assert_eq!(tap.link.tx.dropped(), 0);

    // From the guest: a super-frame, which goes on to a guest that can take none.
    guest.write_all(&payload).unwrap();
    let (super_frame, offload) =
        tap.wait_for(|frame, offload| offload.segmentation.map(|_| (frame.to_vec(), offload)));
    let segmentation = offload.segmentation.unwrap();
    assert_eq!(
        (segmentation.kind, segmentation.size, segmentation.header_len),
        (SegmentKind::Tcp4, 1460, 54)
    );
    let (ours, mut other) = UnixStream::pair().unwrap();
    let mut stream = StreamLink::new(ours.into()).unwrap();
    assert!(stream.tx.send(&[IoSlice::new(&super_frame)], offload).unwrap());
    assert!(stream.tx.flush().unwrap());
    drop(stream);
    let mut bytes = Vec::new();
    other.read_to_end(&mut bytes).unwrap();
    let mut received = Vec::new();
    let mut rest = &bytes[..];
    while let Some((len, behind)) = rest.split_first_chunk() {
        let (frame, behind) = behind.split_at(u32::from_be_bytes(*len) as usize);
        let packet = inspect::packet(frame);
        assert_eq!(packet.seq.cast_signed(), (irs + 1 + received.len()).0);
        received.extend(packet.payload);
        rest = behind;
    }
    assert!(received.len() > 1460);
    assert!(payload.starts_with(&received));
}

#[test]
fn super_frames_of_udp_arrive_as_datagrams() {
    if !in_namespace("super_frames_of_udp_arrive_as_datagrams") {
        return;
    }
    let mut tap = Tap::new();
    assert!(tap.link.tx.capabilities().udp, "Linux before 6.2");
    udp_super_frames_arrive(&mut tap.link);
    // The same where the device does not cut.
    let fd = tap.link.tx.as_fd().try_clone_to_owned().unwrap();
    let mut without = TapLink::with(fd, false).unwrap();
    assert!(!without.tx.capabilities().udp);
    udp_super_frames_arrive(&mut without);
}

/// Sends a super-frame of UDP in each of the two ways, and sees what comes of it.
fn udp_super_frames_arrive(link: &mut Link) {
    let socket = UdpSocket::bind((GUEST, 5000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let template = Template { ipv6: false, udp: true, vlan: false, seq: 0 };
    let (mut header, payload) = (template.header(), inspect::payload(3000));
    Ipv4Packet::new_unchecked(&mut header[14..]).set_total_len(3028);
    Ipv4Packet::new_unchecked(&mut header[14..]).fill_checksum();
    UdpPacket::new_unchecked(&mut header[34..]).set_len(3008);
    let sum = checksum::pseudo_header(&OURS.into(), &GUEST.into(), IpProtocol::Udp, 3008);
    UdpPacket::new_unchecked(&mut header[34..]).set_checksum(sum);
    let offload = Offload {
        checksum: Checksum::Partial { start: 34, offset: 6 },
        segmentation: Some(Segmentation { kind: SegmentKind::Udp, size: 1400, header_len: 42 }),
        fragmentation: None,
    };
    let frame = [&header[..], &payload].concat();
    let parts = [&frame[..30], &frame[30..2000], &frame[2000..]].map(IoSlice::new);
    assert!(link.tx.send(&parts, offload).unwrap());
    let mut room = Vec::new();
    link.tx.reserve(header.len(), 1400, 3000, &mut room);
    room[0].copy_from_slice(&payload);
    link.tx.commit(&header, 3000, offload).unwrap();
    let mut datagram = [0; 2000];
    for _ in 0..2 {
        for expected in payload.chunks(1400) {
            let (len, _) = socket.recv_from(&mut datagram).unwrap();
            assert_eq!(datagram[..len], *expected);
        }
    }
    assert_eq!(link.tx.dropped(), 0);
}

#[test]
fn a_super_frame_of_udp_comes_out_of_the_kernel() {
    if !in_namespace("a_super_frame_of_udp_comes_out_of_the_kernel") {
        return;
    }
    let mut tap = Tap::new();
    let socket = UdpSocket::bind((GUEST, 5000)).unwrap();
    let payload = inspect::payload(30_500);
    // Datagrams of 1000 bytes, by a control message of 18 bytes: level 17 (UDP), type 103
    // (UDP_SEGMENT).
    let mut control = [0; 24];
    control[..8].copy_from_slice(&18_u64.to_ne_bytes());
    control[8..12].copy_from_slice(&17_u32.to_ne_bytes());
    control[12..16].copy_from_slice(&103_u32.to_ne_bytes());
    control[16..18].copy_from_slice(&1000_u16.to_ne_bytes());
    let (to, parts) = (std::net::SocketAddr::from((OURS, 4000)).into(), [IoSlice::new(&payload)]);
    let message = socket2::MsgHdr::new().with_addr(&to).with_buffers(&parts).with_control(&control);
    assert_eq!(socket2::SockRef::from(&socket).sendmsg(&message, 0).unwrap(), payload.len());
    let (udp, segmentation) = tap.wait_for(|frame, offload| {
        ipv4(frame, IpProtocol::Udp).map(|udp| (udp.to_vec(), offload.segmentation.unwrap()))
    });
    assert_eq!(segmentation, Segmentation { kind: SegmentKind::Udp, size: 1000, header_len: 42 });
    assert_eq!(UdpPacket::new_checked(&udp[..]).unwrap().len(), 30_508);
    assert!(udp[8..] == payload);
    assert_eq!(tap.link.rx.dropped(), 0);
}

#[test]
fn what_the_kernel_refuses_is_dropped_until_the_device_is_gone() {
    if !in_namespace("what_the_kernel_refuses_is_dropped_until_the_device_is_gone") {
        return;
    }
    let mut tap = Tap::new();
    tap.send(&[0; 13], Offload::default());
    tap.send(
        &[0; 60],
        Offload { checksum: Checksum::Partial { start: 59, offset: 9 }, ..Offload::default() },
    );
    let segmentation = Segmentation { kind: SegmentKind::Udp, size: 100, header_len: 200 };
    tap.send(&[0; 300], Offload { segmentation: Some(segmentation), ..Offload::default() });
    assert_eq!(tap.link.tx.dropped(), 3);
    tap.send(&[0; 60], Offload::default());
    assert_eq!(tap.link.tx.dropped(), 3);
    ip(&format!("link set {} down", tap.name));
    tap.send(&[0; 60], Offload::default());
    assert_eq!(tap.link.tx.dropped(), 4);
    ip(&format!("link del {}", tap.name));
    assert!(matches!(
        tap.link.tx.send(&[IoSlice::new(&[0; 60])], Offload::default()),
        Err(LinkError::Closed)
    ));
    assert!(matches!(tap.link.rx.receive(), Err(LinkError::Closed)));
}

#[test]
fn names_and_descriptors() {
    if !in_namespace("names_and_descriptors") {
        return;
    }
    let (_link, name) = TapLink::open("usernet0").unwrap();
    assert_eq!(name, "usernet0");
    assert_eq!(TapLink::open("guest%d").unwrap().1, "guest0");
    let error = |result: io::Result<(Link, String)>| result.err().unwrap().to_string();
    assert!(error(TapLink::open("usernet0")).contains("`usernet0`"), "it is in use");
    assert!(error(TapLink::open("a-name-too-long-for-it")).contains("at most 15 bytes"));

    let reason = |fd: OwnedFd| TapLink::from_fd(fd).err().unwrap().to_string();
    let tun = |name: &str, flags| {
        let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR, Mode::empty()).unwrap();
        ioctl::set_interface(fd.as_fd(), name, flags).unwrap();
        fd
    };
    const IFF_TUN: u16 = 1;
    assert!(reason(tun("", IFF_TUN)).contains("TUN device"));
    assert!(reason(tun("", ioctl::IFF_TAP | ioctl::IFF_NO_PI)).contains("IFF_VNET_HDR"));
    let unattached = rustix::fs::open("/dev/net/tun", OFlags::RDWR, Mode::empty()).unwrap();
    assert!(reason(unattached).contains("not attached to a TAP device"));
    assert!(reason(UnixStream::pair().unwrap().0.into()).contains("not attached to a TAP device"));
    let fits = tun("", ioctl::IFF_TAP | ioctl::IFF_NO_PI | ioctl::IFF_VNET_HDR);
    let mut link = TapLink::from_fd(fits).unwrap();
    assert_eq!(link.kind, "tap");
    assert_eq!(link.rx.receive().unwrap(), None, "it does not block");
}

#[test]
fn flows_are_dealt_to_queues_and_answered_by_any() {
    if !in_namespace("flows_are_dealt_to_queues_and_answered_by_any") {
        return;
    }
    const FLOWS: usize = 64;
    let (mut links, name) = TapLink::open_queues("", 3).unwrap();
    assert_eq!(links.len(), 3);
    ip(&format!("link set {name} address 52:54:00:12:34:56 up"));
    ip(&format!("addr add {GUEST}/24 dev {name}"));
    ip(&format!("neigh add {OURS} lladdr 52:55:0a:00:02:02 dev {name}"));

    let sockets: Vec<_> = (0..FLOWS).map(|_| UdpSocket::bind("10.0.2.15:0").unwrap()).collect();
    for socket in &sockets {
        socket.send_to(b"to any", "10.0.2.2:7").unwrap();
    }
    let mut dealt = [0; 3];
    let deadline = Instant::now() + Duration::from_secs(10);
    while dealt.iter().sum::<usize>() < FLOWS {
        assert!(Instant::now() < deadline, "{dealt:?} of {FLOWS}");
        for (link, dealt) in links.iter_mut().zip(&mut dealt) {
            while let Some(count) = link.rx.receive().unwrap() {
                let frames = (0..count).map(|index| {
                    let mut frame = vec![0; link.rx.frame_len(index)];
                    link.rx.copy_to(index, 0, &mut frame);
                    frame
                });
                *dealt += frames.filter(|frame| frame.ends_with(b"to any")).count();
            }
        }
    }
    assert!(dealt.iter().filter(|flows| **flows > 0).count() > 1, "{dealt:?}");

    // One flow's answers, by each queue.
    let port = sockets[0].local_addr().unwrap().port();
    sockets[0].set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for (number, link) in links.iter_mut().enumerate() {
        let mut datagram = vec![0, 7, 0, 0, 0, 9, 0, 0, u8::try_from(number).unwrap()];
        datagram[2..4].copy_from_slice(&port.to_be_bytes());
        let frame = Tap::frame(IpProtocol::Udp, &datagram);
        assert!(link.tx.send(&[IoSlice::new(&frame)], Offload::default()).unwrap());
        let mut answer = [0; 2];
        assert_eq!(sockets[0].recv(&mut answer).unwrap(), 1);
        assert_eq!(usize::from(answer[0]), number);
    }
}
