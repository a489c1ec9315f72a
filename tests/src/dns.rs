//! An upstream DNS server with a few names under `test.`, over UDP and TCP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

use hickory_proto::op::{Message, Query, ResponseCode};
pub use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::{A, AAAA, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record};

/// The length of one of the strings of `big.test`, which has [`BIG_STRINGS`] of them: more than any
/// datagram may carry by RFC 1035, and more than clients offer by EDNS.
const BIG_STRING: usize = 200;

/// How many records `big.test` has.
pub const BIG_STRINGS: usize = 40;

/// The server. Its names: `a.test` (A 192.0.2.80, AAAA 2001:db8::80), `text.test` (TXT "plain words"),
/// `big.test` (TXT, too big for UDP), and `counted.test` (A), for tests that count queries.
pub struct DnsServer {
    /// Where it listens, UDP and TCP.
    pub address: SocketAddr,
    queries: Arc<Mutex<Vec<String>>>,
}

impl DnsServer {
    /// Starts a server on the host's loopback.
    pub fn start() -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let queries = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&queries);
        thread::spawn(move || serve_udp(&udp, &seen));
        let seen = Arc::clone(&queries);
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve_tcp(stream, &seen));
            }
        });
        Self { address, queries }
    }

    /// The option that makes it the daemon's upstream.
    pub fn option(&self) -> [String; 2] {
        ["--dns-upstream".to_owned(), self.address.to_string()]
    }

    /// The queries that came so far: `udp a.test. A`.
    pub fn queries(&self) -> Vec<String> {
        self.queries.lock().unwrap().clone()
    }
}

/// A query as it travels over TCP: its length first.
pub fn tcp_query(name: &str, record_type: RecordType) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    framed(&query)
}

/// The answer in what came over TCP.
pub fn tcp_answer(bytes: &[u8]) -> Message {
    Message::from_vec(&bytes[2..]).unwrap()
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat()
}

fn serve_udp(socket: &UdpSocket, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let Some(answer) = answer(&buffer[..length], "udp", seen) else { continue };
        let limit = usize::from(answer.max_payload());
        let bytes = answer.to_vec().unwrap();
        let bytes = if bytes.len() > limit { answer.truncate().to_vec().unwrap() } else { bytes };
        // Who asked may be gone.
        let _ = socket.send_to(&bytes, from);
    }
}

fn serve_tcp(mut stream: TcpStream, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let Some(answer) = answer(&query, "tcp", seen) else { return Ok(()) };
        stream.write_all(&framed(&answer))?;
    }
}

fn answer(query: &[u8], transport: &str, seen: &Mutex<Vec<String>>) -> Option<Message> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().clone();
    seen.lock().unwrap().push(format!("{transport} {name} {}", question.query_type()));

    let text = |text: String| RData::TXT(TXT::new(vec![text]));
    let address = || RData::A(A::new(192, 0, 2, 80));
    let (known, records) = match (name.to_string().to_lowercase().as_str(), question.query_type()) {
        ("a.test.", RecordType::A) => (true, vec![address()]),
        ("a.test.", RecordType::AAAA) => (true, vec![RData::AAAA(AAAA("2001:db8::80".parse().unwrap()))]),
        ("counted.test.", RecordType::A) => (true, vec![address()]),
        ("text.test.", RecordType::TXT) => (true, vec![text("plain words".to_owned())]),
        ("big.test.", RecordType::TXT) => {
            let strings = (0..BIG_STRINGS).map(|i| text(format!("{i:0>BIG_STRING$}")));
            (true, strings.collect())
        }
        ("a.test." | "counted.test." | "text.test." | "big.test.", _) => (true, Vec::new()),
        _ => (false, Vec::new()),
    };

    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = if known { ResponseCode::NoError } else { ResponseCode::NXDomain };
    answer.edns = query.edns.clone();
    answer.add_query(question);
    if records.is_empty() {
        let zone = Name::from_ascii("test.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86400, 60);
        answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
    }
    answer.add_answers(records.into_iter().map(|data| Record::from_rdata(name.clone(), 60, data)));
    Some(answer)
}
