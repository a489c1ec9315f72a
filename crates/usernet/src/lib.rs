//! A user network for virtual machines: the library that a VMM embeds.
//!
//! A [`Network`] is 10.0.2.0/24 and fd00::/64 (or what its [`Config`] says) with a gateway, a DNS server
//! and a DHCP server on either, and it needs no privilege: guests reach the outside through ordinary
//! sockets of this process. A guest is a [`link::Link`] that is attached to it (or several, its queues), any
//! number of guests; what passes between a link and the host is done on one of the worker threads, and DNS
//! on a control thread. The [`Handle`] answers from any thread: it attaches guests, adds and removes
//! forwarded ports, and lists leases, flows and counters.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//!
//! use usernet::link::stream::StreamLink;
//! use usernet::{Config, Network};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = Network::start(Config { hostname: Some("vm".into()), ..Config::default() })?;
//! let handle = network.handle();
//!
//! // Each frame behind its length, as QEMU's `-netdev stream` has it. The VMM keeps the other end.
//! let (ours, vmm) = UnixStream::pair()?;
//! let port = handle.attach(StreamLink::new(ours.into())?, "vm0")?;
//!
//! // QEMU's grammar; host port 0 takes any free one.
//! let forward = handle.add_forward(&"tcp:127.0.0.1:0-:22".parse()?)?;
//! println!("ssh -p {} 127.0.0.1", forward.host.port());
//! assert_eq!(handle.ports()?.len(), 1);
//!
//! // The guest goes.
//! drop(vmm);
//! let reason = handle.runtime().block_on(handle.detached(port));
//! assert!(reason == "the guest closed the link" || reason == "the link is gone");
//! network.shutdown();
//! # Ok(())
//! # }
//! ```
//!
//! A VMM that has its guest's virtio rings hands them over as a [`link::virtio::Device`]. Frames then move
//! straight from and to the guest's memory, with the offloads that its driver knows, and each pair of queues
//! has a worker. The configuration space, the status and a control queue are the VMM's own:
//!
//! ```
//! use std::fs::File;
//! use std::num::NonZeroU16;
//!
//! use rustix::event::{EventfdFlags, eventfd};
//! use rustix::fs::{MemfdFlags, memfd_create};
//! use usernet::link::virtio::{Device, Memory, Region, RegionLayout, RingLayout, feature};
//! use usernet::{Config, Network};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pairs = NonZeroU16::MIN.saturating_add(1);
//! let network = Network::start(Config { workers: Some(pairs), ..Config::default() })?;
//! let (device, links) = Device::new(pairs)?;
//! let port = network.handle().attach_queues(links, "vm0")?;
//!
//! // The guest's memory: a file, and where the guest has it.
//! let len = 1 << 20;
//! let ram = File::from(memfd_create("ram", MemfdFlags::CLOEXEC)?);
//! ram.set_len(len)?;
//! let mut memory = Memory::default();
//! let region = Region::map(RegionLayout { guest: 0, rings: 0, len, offset: 0 }, &ram)?;
//! memory.add(region).ok_or("it overlaps another")?;
//! device.set_memory(&memory)?;
//!
//! // Its driver has come up: what it took of feature::DEVICE, and where it put each queue.
//! device.set_features(feature::DEVICE);
//! for (index, at) in (0..device.queues()).zip((0..).step_by(0x4000)) {
//!     let (descriptors, available, used) = (at, at + 0x1000, at + 0x2000);
//!     let ring = RingLayout { size: 256, descriptors, available, used, event_idx: true, indirect: true };
//!     // The guest's notifications come by one eventfd (for KVM, an ioeventfd); its interrupts leave by another
//!     // (an irqfd).
//!     let [kick, call] = [(); 2].map(|()| eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC));
//!     device.set_call(index, Some(call?))?;
//!     device.start(index, ring, 0, kick?)?;
//! }
//! assert_eq!(network.handle().ports()?.first().map(|guest| guest.queues.len()), Some(2));
//!
//! // The guest has made no mistake yet, and goes.
//! assert_eq!(device.trouble(), None);
//! drop(device);
//! network.handle().runtime().block_on(network.handle().detached(port));
//! # Ok(())
//! # }
//! ```
//!
//! For a guest in another process there is [`Handle::attach_vhost_user`].
//!
//! What it does not do: it never opens a raw socket or a device by itself, starts no process, and writes
//! no file but the capture that the configuration names.

mod capture;
mod config;
mod core_config;
mod error;
mod forward;
mod handle;
mod host;
mod info;
mod net6;
mod network;
mod outbound;
mod roster;
mod worker;

pub use config::{Config, ConfigError};
pub use error::Error;
pub use forward::{ForwardProtocol, ForwardRule, ParseForwardError};
pub use handle::Handle;
pub use info::{
    DropInfo, FlowInfo, ForwardInfo, GuestAddress, GuestConfig, LeaseInfo, PortInfo, QueueInfo, Traffic,
};
pub use net6::Net6;
pub use network::Network;
pub use outbound::Outbound;
pub use usernet_core::network::MulticastService;
pub use usernet_core::wire::IPV6_MIN_MTU;
pub use usernet_link as link;
