//! Several workers: a guest whose frames come to any of its queues, and guests of different workers.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

use usernet::Error;
use usernet::link::stream::StreamLink;
use usernet_testkit::{App, Close, digest_of, fill};

use crate::guest::{Guest, Queue, SOON, echo_server, guest_with_address, network, run};
use crate::{BULK, GATEWAY};

#[test]
fn a_flow_may_come_by_any_queue() {
    let network = network(3);
    let mut guest = [guest_with_address(&network, 3, 1)];

    let app = App { seed: 7, send: BULK, close: Close::Sent, ..App::default() };
    let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
    run(&mut guest, "an echo", |guest| guest[0].smol.received(stream) == BULK);
    assert_eq!(guest[0].smol.digest(stream), digest_of(7, BULK));

    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let to = SocketAddrV4::new(GATEWAY, host.local_addr().unwrap().port());
    let socket = guest[0].smol.udp(5000);
    let mut from = Vec::new();
    for n in 0..9_u8 {
        guest[0].smol.udp_send(socket, to, &[n]);
        run(&mut guest, "a datagram", |_| {
            let mut buffer = [0; 1];
            let received = host.recv_from(&mut buffer);
            from.extend(received.iter().map(|(_, from)| *from));
            received.is_ok_and(|_| buffer == [n])
        });
    }
    from.dedup();
    assert_eq!(from.len(), 1, "one port of the host for one of the guest: {from:?}");
    host.send_to(b"reply", from[0]).unwrap();
    run(&mut guest, "a reply", |guest| {
        guest[0].smol.udp_received(socket).iter().any(|(_, got)| got == b"reply")
    });

    let flows = network.handle().flows().unwrap();
    let of = |protocol: &str| flows.iter().filter(|flow| flow.protocol == protocol).count();
    assert_eq!((of("udp"), of("tcp").min(1)), (1, of("tcp")), "each flow is one worker's: {flows:#?}");
    let ports = network.handle().ports().unwrap();
    assert_eq!(ports.len(), 1, "{ports:#?}");
    assert!(ports[0].traffic.rx_bytes > BULK && ports[0].traffic.tx_bytes > BULK, "{ports:#?}");

    network.handle().detach(guest[0].port).unwrap();
    let gone = |queue: &mut Queue| matches!(queue.stream.read(&mut [0; 1 << 16]), Ok(0));
    let deadline = std::time::Instant::now() + SOON;
    for queue in &mut guest[0].queues {
        queue.stream.set_nonblocking(false).unwrap();
        while !gone(queue) {
            assert!(std::time::Instant::now() < deadline, "a queue stays");
        }
    }
    assert!(network.handle().ports().unwrap().is_empty());
    assert!(network.handle().leases().unwrap().is_empty());
}

#[test]
fn a_guest_with_more_queues_than_workers_is_told_the_way_out() {
    let network = network(1);
    let link = || StreamLink::new(UnixStream::pair().unwrap().0.into()).unwrap();
    let error = network.handle().attach_queues(vec![link(), link()], "guest").unwrap_err();
    assert!(matches!(error, Error::TooManyQueues { queues: 2, workers: 1 }));
    assert!(error.to_string().contains("fewer queues"), "{error}");
}

#[test]
fn guests_of_different_workers_are_on_one_network() {
    let network = network(2);
    let mut guests = [guest_with_address(&network, 1, 1), guest_with_address(&network, 1, 2)];
    let [first, second] = [0, 1].map(|n: usize| guests[n].smol.addr().unwrap());
    assert_eq!([first.octets()[3], second.octets()[3]], [15, 16]);
    assert_eq!(network.handle().leases().unwrap().len(), 2);

    // From guest to guest.
    let server = App { echo: true, ..App::default() };
    guests[1].smol.listen(80, server);
    let app = App { seed: 3, send: BULK, close: Close::Sent, ..App::default() };
    let stream = guests[0].smol.connect(SocketAddrV4::new(second, 80), app);
    run(&mut guests, "an echo of the other guest", |guests| guests[0].smol.received(stream) == BULK);
    assert_eq!(guests[0].smol.digest(stream), digest_of(3, BULK));

    // From the host to each.
    for (n, addr) in [first, second].into_iter().enumerate() {
        let forward = format!("tcp:127.0.0.1:0-{addr}:90").parse().unwrap();
        let host = network.handle().add_forward(&forward).unwrap().host;
        guests[n].smol.listen(90, server);
        let client = std::thread::spawn(move || echoed(host));
        run(&mut guests, "a forwarded connection", |_| client.is_finished());
        assert!(client.join().unwrap(), "to {addr}");

        let forward = format!("udp:127.0.0.1:0-{addr}:91").parse().unwrap();
        let host = network.handle().add_forward(&forward).unwrap().host;
        let socket = guests[n].smol.udp(91);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        client.send_to(b"question", host).unwrap();
        run(&mut guests, "a forwarded datagram and its reply", |guests| {
            for (from, payload) in guests[n].smol.udp_received(socket) {
                assert_eq!(payload, b"question");
                let smoltcp_addr = from.to_string().parse().unwrap();
                guests[n].smol.udp_send(socket, smoltcp_addr, b"answer");
            }
            let mut buffer = [0; 16];
            client.recv_from(&mut buffer).is_ok_and(|(len, from)| buffer[..len] == *b"answer" && from == host)
        });
    }
}

#[test]
fn a_connection_waits_for_a_guest_that_another_worker_finds() {
    let network = network(2);
    // The first worker, which has the forwards, gets another guest.
    let mut bystander = [guest_with_address(&network, 1, 1)];
    let host = network.handle().add_forward(&"tcp:127.0.0.1:0-10.0.2.16:90".parse().unwrap()).unwrap().host;
    let client = std::thread::spawn(move || echoed(host));
    run(&mut bystander, "a connection", |_| network.handle().forwards().unwrap()[0].accepted == 1);
    let mut guests = [Guest::plug_in(&network, 1, 2)];
    guests[0].smol.listen(90, App { echo: true, ..App::default() });
    run(&mut guests, "the waiting connection", |_| client.is_finished());
    assert!(client.join().unwrap());
}

/// Sends a megabyte to an echo and gets it back.
fn echoed(to: SocketAddr) -> bool {
    let mut sent = vec![0; 1 << 20];
    fill(9, 0, &mut sent);
    let mut stream = TcpStream::connect(to).unwrap();
    let (mut writer, copy) = (stream.try_clone().unwrap(), sent.clone());
    std::thread::spawn(move || writer.write_all(&copy));
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).is_ok() && received == sent
}
