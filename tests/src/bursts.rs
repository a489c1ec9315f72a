//! Datagrams that are sent by one call, which the kernel cuts (`UDP_SEGMENT`).

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};

use socket2::{MsgHdr, SockRef};

/// Sends `payload` as datagrams of `size` bytes, the last with what is left.
pub fn send(socket: &UdpSocket, to: SocketAddr, payload: &[u8], size: u16) -> io::Result<()> {
    // A control message of 18 bytes: level 17 (UDP), type 103 (UDP_SEGMENT).
    let mut control = [0; 24];
    control[..8].copy_from_slice(&18_u64.to_ne_bytes());
    control[8..12].copy_from_slice(&17_u32.to_ne_bytes());
    control[12..16].copy_from_slice(&103_u32.to_ne_bytes());
    control[16..18].copy_from_slice(&size.to_ne_bytes());
    let (to, parts) = (to.into(), [IoSlice::new(payload)]);
    let message = MsgHdr::new().with_addr(&to).with_buffers(&parts).with_control(&control);
    SockRef::from(socket).sendmsg(&message, 0).map(drop)
}

/// Datagrams of one size, up to the first that is shorter.
pub struct Burst {
    /// Who sent the last.
    pub from: SocketAddr,
    /// Bytes of all but the last.
    pub size: u16,
    /// What they say.
    pub payload: Vec<u8>,
}

/// Takes in datagrams up to one that is shorter than the first.
pub fn receive(socket: &UdpSocket) -> io::Result<Burst> {
    let mut buffer = vec![0; 1 << 16];
    let (mut size, mut payload) = (None, Vec::new());
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        payload.extend_from_slice(&buffer[..length]);
        let size = *size.get_or_insert(length);
        if length != size {
            assert!(length < size, "{length} bytes behind datagrams of {size}");
            return Ok(Burst { from, size: u16::try_from(size).unwrap(), payload });
        }
    }
}
