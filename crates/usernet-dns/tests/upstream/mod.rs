//! A little name server on loopback, UDP and TCP on one port, that says what a test tells it to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use usernet_dns::Transport;

/// What the server says to a query; `None` is silence.
pub(crate) type Script = dyn Fn(&Message, Transport) -> Option<Vec<u8>> + Send + Sync;

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(Message, Transport)>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Upstream {
    pub(crate) async fn start(
        script: impl Fn(&Message, Transport) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = bind().await;
        let address = udp.local_addr().unwrap();
        let script: Arc<Script> = Arc::new(script);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let over_udp = tokio::spawn(serve_udp(udp, script.clone(), asked.clone()));
        let over_tcp = tokio::spawn(serve_tcp(tcp, script, asked.clone()));
        Self { address, asked, tasks: [over_udp, over_tcp] }
    }

    /// The queries that came, in order.
    pub(crate) fn asked(&self) -> Vec<(Message, Transport)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A response to `query` with these answers.
pub(crate) fn reply(query: &Message, answers: impl IntoIterator<Item = Record>) -> Message {
    let mut reply = Message::error_msg(query.metadata.id, OpCode::Query, ResponseCode::NoError);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.clone()).add_answers(answers);
    reply.edns = query.edns.clone();
    reply
}

/// A negative response: `minimum` is the SOA's last field, in seconds.
pub(crate) fn negative(query: &Message, code: ResponseCode, minimum: u32) -> Message {
    let mut reply = reply(query, []);
    reply.metadata.response_code = code;
    let soa = SOA::new(name("ns.test."), name("root.test."), 7, 3600, 600, 86_400, minimum);
    reply.add_authority(Record::from_rdata(name("test."), 3600, RData::SOA(soa)));
    reply
}

pub(crate) fn name(name: &str) -> Name {
    Name::from_ascii(name).unwrap()
}

async fn bind() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

async fn serve_udp(socket: UdpSocket, script: Arc<Script>, asked: Arc<Mutex<Vec<(Message, Transport)>>>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        asked.lock().unwrap().push((query.clone(), Transport::Udp));
        if let Some(reply) = script(&query, Transport::Udp) {
            socket.send_to(&reply, peer).await.unwrap();
        }
    }
}

async fn serve_tcp(listener: TcpListener, script: Arc<Script>, asked: Arc<Mutex<Vec<(Message, Transport)>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut query = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut query).await.unwrap();
        let query = Message::from_vec(&query).unwrap();
        asked.lock().unwrap().push((query.clone(), Transport::Tcp));
        if let Some(reply) = script(&query, Transport::Tcp) {
            stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    }
}
