//! QEMU's arguments for a network card that is plugged in here.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::Path;

use crate::endpoint::Endpoint;

/// A network card, and what it is plugged in to.
#[derive(Debug)]
pub(crate) struct Card<'a> {
    /// What QEMU calls the network, which its other parts are named after.
    pub(crate) id: &'a str,
    pub(crate) backend: Backend,
    /// The device that the machine has a bus for: `virtio-net-pci`, mostly.
    pub(crate) driver: &'a str,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u16,
}

/// How frames get from QEMU to here and back. Each has the properties of a socket, as QEMU writes them.
#[derive(Debug)]
pub(crate) enum Backend {
    /// `-netdev stream`.
    Stream(String),
    /// `-netdev vhost-user`.
    VhostUser {
        socket: String,
        /// The machine's memory, as QEMU writes a size.
        memory: String,
        queues: NonZeroU16,
    },
}

impl Backend {
    /// QEMU connects to `endpoint`.
    pub(crate) fn stream(endpoint: &Endpoint) -> Self {
        Self::Stream(match endpoint {
            Endpoint::Unix(path) => format!("addr.type=unix,addr.path={}", value(path)),
            Endpoint::Tcp(address) => {
                let (host, port) = (reached_at(*address), address.port());
                format!("addr.type=inet,addr.host={host},addr.port={port}")
            }
        })
    }

    /// QEMU connects to `path`, and does so again when the other side was away.
    pub(crate) fn vhost_user(path: &Path, memory: &str, queues: NonZeroU16) -> Self {
        let socket = format!("path={},reconnect=1", value(path));
        Self::VhostUser { socket, memory: memory.to_owned(), queues }
    }
}

impl Card<'_> {
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Self { id, driver, .. } = self;
        let mut device = format!("{driver},netdev={id}");
        let mut arguments = match &self.backend {
            Backend::Stream(socket) => vec!["-netdev".into(), format!("stream,id={id},server=off,{socket}")],
            Backend::VhostUser { socket, memory, queues } => {
                let mut netdev = format!("vhost-user,id={id},chardev={id}-socket");
                if queues.get() > 1 {
                    netdev += &format!(",queues={queues}");
                    device += ",mq=on";
                }
                vec![
                    "-object".into(),
                    format!("memory-backend-memfd,id={id}-memory,share=on,size={memory}"),
                    "-machine".into(),
                    format!("memory-backend={id}-memory"),
                    "-chardev".into(),
                    format!("socket,id={id}-socket,{socket}"),
                    "-netdev".into(),
                    netdev,
                ]
            }
        };
        if let Some([a, b, c, d, e, f]) = self.mac {
            device += &format!(",mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        if self.mtu != 1500 {
            device += &format!(",host_mtu={}", self.mtu);
        }
        arguments.extend(["-device".into(), device]);
        arguments
    }

    /// The arguments as a shell wants them.
    pub(crate) fn for_shell(&self) -> String {
        let arguments: Vec<_> = self.arguments().iter().map(|argument| quoted(argument)).collect();
        arguments.join(" ")
    }
}

/// Where a listener is reached: on the loopback, if it is at any address.
fn reached_at(address: SocketAddr) -> String {
    match (address.ip().is_unspecified(), address.is_ipv6()) {
        (false, _) => address.ip().to_string(),
        (true, false) => "127.0.0.1".into(),
        (true, true) => "::1".into(),
    }
}

/// A path as QEMU's value of a property: a comma ends one unless there are two.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// An argument as a shell wants it.
pub(crate) fn quoted(argument: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./,:=@%+".contains(&byte) || !byte.is_ascii();
    if argument.bytes().all(plain) {
        argument.into()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(backend: Backend, mtu: u16) -> String {
        Card { id: "net0", backend, driver: "virtio-net-pci", mac: None, mtu }.for_shell()
    }

    #[test]
    fn a_stream_can_be_pasted() {
        let card = |text: &str, mtu| card(Backend::stream(&text.parse().unwrap()), mtu);
        assert_eq!(
            card("unix:/run/a,b.sock", 1500),
            "-netdev stream,id=net0,server=off,addr.type=unix,addr.path=/run/a,,b.sock \
             -device virtio-net-pci,netdev=net0"
        );
        assert!(card("unix:/tmp/it's mine", 1500).contains(r"addr.path=/tmp/it'\''s mine' "));
        assert_eq!(
            card("tcp:0.0.0.0:9000", 65520),
            "-netdev stream,id=net0,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=9000 \
             -device virtio-net-pci,netdev=net0,host_mtu=65520"
        );
    }

    #[test]
    fn vhost_user_can_be_pasted() {
        let card = |queues, mtu| {
            let queues = NonZeroU16::new(queues).unwrap();
            card(Backend::vhost_user("/run/a,b.sock".as_ref(), "1G", queues), mtu)
        };
        assert_eq!(
            card(1, 1500),
            "-object memory-backend-memfd,id=net0-memory,share=on,size=1G -machine memory-backend=net0-memory \
             -chardev socket,id=net0-socket,path=/run/a,,b.sock,reconnect=1 \
             -netdev vhost-user,id=net0,chardev=net0-socket -device virtio-net-pci,netdev=net0"
        );
        assert!(card(2, 9000).ends_with(
            " -netdev vhost-user,id=net0,chardev=net0-socket,queues=2 \
             -device virtio-net-pci,netdev=net0,mq=on,host_mtu=9000"
        ));
    }
}
