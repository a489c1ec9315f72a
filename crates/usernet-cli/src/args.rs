//! The command line: what may be said, what it means, and the help that teaches it.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, Id, Parser, Subcommand};
use usernet::{Config, ForwardRule, IPV6_MIN_MTU, MulticastService, Net6, Outbound};

use crate::Usage;
use crate::endpoint::Endpoint;
use crate::guests::{MAX_QUEUES, Speaks, VhostUser};

/// A network for virtual machines that needs no privilege on the host.
///
/// Guests are on 10.0.2.0/24: the host is the gateway 10.0.2.2, DNS answers at 10.0.2.3, and DHCP
/// gives out addresses from 10.0.2.15 on; the same on fd00::/64, with fd00::2, fd00::3 and fd00::15. TCP,
/// UDP and ping go out through ordinary sockets of the host; ports of the host are forwarded in with
/// --hostfwd.
///
/// Without a command, usernet is a daemon that guests plug in to, any number of them; it prints the
/// arguments that QEMU needs.
#[derive(Debug, Parser)]
#[command(name = "usernet", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

const EXAMPLES: &str = "\
Examples:
  usernet exec -- ping -c1 10.0.2.2
      Run a command as a guest of a network of its own.
  usernet run --hostfwd tcp:127.0.0.1:10022-:22 -- qemu-system-x86_64 -m 1G disk.img
      Start QEMU with a network; `ssh -p 10022 127.0.0.1` reaches the guest.
  usernet --hostfwd tcp:127.0.0.1:10022-:22
      Serve a network until Ctrl-C; paste what it prints behind a QEMU command.
  usernet ctl leases
      Ask the daemon which guests there are.

Exit status: 0 when all went well, 1 when something failed, 2 when the command line makes no sense;
exec and run end with the status of their command (128 and the signal's number if one ended it).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Exec(ExecArgs),
    Run(RunArgs),
    Ctl(CtlArgs),
    /// The inner half of `exec`.
    #[command(hide = true)]
    ExecGuest(ExecGuestArgs),
}

/// What the daemon takes.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Listen for guests on a stream socket; repeatable
    ///
    /// unix:PATH or tcp:ADDRESS:PORT. Without this, --connect and --vhost-user, it is a Unix socket in a
    /// folder of yours: $XDG_RUNTIME_DIR/usernet, or usernet-UID under the temporary directory. A guest
    /// speaks QEMU's framing: four bytes of length before each Ethernet frame.
    #[arg(long, value_name = "unix:PATH|tcp:ADDR:PORT")]
    pub(crate) listen: Vec<Endpoint>,
    /// Connect to a guest that listens; repeatable
    ///
    /// QEMU with `-netdev stream,server=on,...`. A connection that ends, or cannot be had yet, is
    /// tried again.
    #[arg(long, value_name = "unix:PATH|tcp:ADDR:PORT")]
    pub(crate) connect: Vec<Endpoint>,
    /// Listen for vhost-user front ends on a Unix socket; repeatable
    ///
    /// The fastest way for a machine: its own rings are served, in memory that it shares. QEMU with a shared
    /// memory backend and `-netdev vhost-user`, or User Mode Linux; what to give them is printed, but for
    /// `connect`. `queues` offers so many pairs of queues, 64 at most, each served by a worker of its own: as
    /// many as the guest has processors is best [default: 1]. With `connect`, it is the front end that listens
    /// (`-chardev socket,server=on`), and a connection that ends, or cannot be had yet, is tried again. A comma
    /// in PATH is written twice. With the usual umask only the socket's owner may connect to it.
    /// QEMU 7.2 without KVM crashes unless the device has `vectors=0`.
    #[arg(long, value_name = "PATH[,queues=N][,connect]")]
    pub(crate) vhost_user: Vec<VhostUser>,
    /// Answer `usernet ctl` and HTTP on this Unix socket
    ///
    /// The default is a socket in the same folder as the default of --listen. Only its owner may
    /// connect to it. Try: curl --unix-socket PATH http://usernet/v1/leases
    #[arg(long, value_name = "unix:PATH")]
    pub(crate) control: Option<ControlPath>,
    /// Write "READY=1" and a line end to this descriptor once guests are served, and close it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) ready_fd: Option<i32>,
    /// Write the process ID to this file; it is removed at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
}

impl DaemonArgs {
    /// The configuration that the options describe, checked: unless told otherwise, with workers for all
    /// queues that one guest may have.
    pub(crate) fn config(&self) -> Result<Config, Usage> {
        let queues = self.vhost_user.iter().map(|socket| socket.queues).max().unwrap_or(NonZeroU16::MIN);
        self.network
            .config_for("--vhost-user PATH,queues=", queues, |config| config.worker_count().max(queues))
    }

    /// Where to listen for guests.
    pub(crate) fn listeners(&self) -> Vec<(Endpoint, Speaks)> {
        self.sockets(&self.listen, false)
    }

    /// Where guests listen.
    pub(crate) fn listening(&self) -> Vec<(Endpoint, Speaks)> {
        self.sockets(&self.connect, true)
    }

    fn sockets(&self, streams: &[Endpoint], connect: bool) -> Vec<(Endpoint, Speaks)> {
        let streams = streams.iter().map(|endpoint| (endpoint.clone(), Speaks::Frames));
        let vhost_user = self.vhost_user.iter().filter(|socket| socket.connect == connect);
        let vhost_user = vhost_user.map(|socket| (socket.endpoint.clone(), Speaks::VhostUser(socket.queues)));
        streams.chain(vhost_user).collect()
    }
}

/// Run a command as a guest
///
/// The command (your shell, if you name none) runs in a user and network namespace of its own,
/// whose one interface is plugged in to a new network, or with --join to a daemon's. Address, route
/// and resolv.conf are in place when it starts. Inside, it seems to be root; outside, it has no
/// right that you do not have.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES)]
pub(crate) struct ExecArgs {
    /// Be a guest of the running daemon whose control socket this is
    #[arg(long, value_name = "PATH", conflicts_with_all = network_options())]
    pub(crate) join: Option<ControlPath>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
    /// Queues of the guest's device, each served by a worker, 16 at most
    ///
    /// More than one pay where a guest has many busy connections and processors to spare. With --join,
    /// the daemon needs as many workers.
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = number::<NonZeroU16>(1..=16), allow_negative_numbers = true)]
    pub(crate) queues: NonZeroU16,
    /// The command and its arguments [default: $SHELL]
    #[arg(trailing_var_arg = true, value_name = "COMMAND", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

const EXEC_EXAMPLES: &str = "\
Examples:
  usernet exec
      A shell on a network of its own.
  usernet exec -- ip addr
      What a guest sees.
  usernet exec --hostfwd tcp:127.0.0.1:8080-:80 -- python3 -m http.server 80
      A server on the guest's port 80, reached at http://127.0.0.1:8080.
  usernet --control unix:/tmp/lab.sock & usernet exec --join /tmp/lab.sock
      A guest of a daemon's network, which others may join, too.";

/// Start QEMU with a network
///
/// Runs the QEMU command with a netdev and a virtio-net device added, on a network in this process.
/// Needs QEMU 7.2 or later, which has to be started directly: behind a program that closes descriptors,
/// such as sudo, it cannot connect.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
    /// Serve the guest's own rings, in memory that QEMU shares: the fastest way
    ///
    /// The machine's memory becomes a shared memory backend of the size that -m says: 128M without
    /// it, as on a PC.
    /// QEMU 7.2 without KVM crashes unless it is given `-global virtio-net-pci.vectors=0` as well.
    #[arg(long)]
    pub(crate) vhost_user: bool,
    /// With --vhost-user, pairs of queues of the guest's device, each served by a worker, 64 at most
    ///
    /// As many as the guest has processors is best.
    #[arg(long, value_name = "N", default_value = "1", requires = "vhost_user")]
    #[arg(value_parser = number::<NonZeroU16>(1..=MAX_QUEUES), allow_negative_numbers = true)]
    pub(crate) queues: NonZeroU16,
    /// The QEMU command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "QEMU", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

impl RunArgs {
    /// The configuration that the options describe, checked.
    pub(crate) fn config(&self) -> Result<Config, Usage> {
        self.network.config_of_one(self.queues)
    }
}

const RUN_EXAMPLES: &str = "\
Examples:
  usernet run qemu-system-x86_64 -m 1G -nographic disk.img
  usernet run --hostfwd tcp:127.0.0.1:10022-:22 --mtu 65520 -- qemu-system-aarch64 -M virt ...
  usernet run --vhost-user --queues 4 -- qemu-system-x86_64 -enable-kvm -smp 4 -m 4G disk.img";

/// What a network can be told.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// Forward a port of the host to a guest; repeatable
    ///
    /// [tcp|udp]:[HOST-ADDR]:HOST-PORT-[GUEST-ADDR]:GUEST-PORT, as for QEMU. Without a host address
    /// it listens on 0.0.0.0, so that others can reach it, too; without a guest address it goes to the
    /// first DHCP address. Host port 0 takes any free port: `usernet ctl forwards` tells which. IPv6
    /// addresses stand in brackets.
    #[arg(long, value_name = "RULE")]
    pub(crate) hostfwd: Vec<ForwardRule>,
    /// The network's address range [default: 10.0.2.0/24]
    ///
    /// The gateway, the DNS server and the DHCP addresses move along: .2, .3 and from .15 on.
    #[arg(long, value_name = "CIDR")]
    pub(crate) net: Option<Cidr>,
    /// The gateway: the host, as guests see it [default: 10.0.2.2]
    #[arg(long, value_name = "ADDR", value_parser = parse_ipv4)]
    pub(crate) host: Option<Ipv4Addr>,
    /// The DNS server, as guests see it [default: 10.0.2.3]
    #[arg(long, value_name = "ADDR", value_parser = parse_ipv4)]
    pub(crate) dns: Option<Ipv4Addr>,
    /// The network's IPv6 prefix [default: fd00::/64]
    ///
    /// The gateway is at ::2, the DNS server at ::3, and DHCPv6 gives out addresses from ::15 on. Guests
    /// make addresses of their own as well when the prefix has 64 bits. IPv6 needs an --mtu of 1280 or
    /// more: below that, guests have none.
    #[arg(long, value_name = "PREFIX", conflicts_with = "ipv4_only")]
    pub(crate) net6: Option<Prefix6>,
    /// The IPv6 gateway: the host, as guests see it [default: fd00::2]
    #[arg(long, value_name = "ADDR", value_parser = parse_ipv6, conflicts_with = "ipv4_only")]
    pub(crate) host6: Option<Ipv6Addr>,
    /// The DNS server's IPv6 address, as guests see it [default: fd00::3]
    #[arg(long, value_name = "ADDR", value_parser = parse_ipv6, conflicts_with = "ipv4_only")]
    pub(crate) dns6: Option<Ipv6Addr>,
    /// Give guests IPv4 and no IPv6
    #[arg(long, short = '4')]
    pub(crate) ipv4_only: bool,
    /// Give guests IPv6 and no IPv4
    #[arg(long, short = '6', conflicts_with_all = ["ipv4_only", "dns", "dhcp_start"])]
    pub(crate) ipv6_only: bool,
    /// Let guests reach IPv4 hosts over IPv6
    ///
    /// NAT64: behind 64:ff9b::/96 lies all of IPv4, private addresses too, and the host's IPv4 loopback at
    /// 64:ff9b::10.0.2.2, or where --net and --host put it. DNS64: names that have only IPv4 addresses are
    /// given such ones. Made for --ipv6-only.
    #[arg(long, conflicts_with = "ipv4_only")]
    pub(crate) nat64: bool,
    /// Where DNS queries go; repeatable [default: as /etc/resolv.conf says]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_upstream)]
    pub(crate) dns_upstream: Vec<SocketAddr>,
    /// The first address that DHCP gives out [default: 10.0.2.15]
    #[arg(long, value_name = "ADDR", value_parser = parse_ipv4)]
    pub(crate) dhcp_start: Option<Ipv4Addr>,
    /// The first address that DHCPv6 gives out [default: fd00::15]
    #[arg(long, value_name = "ADDR", value_parser = parse_ipv6, conflicts_with = "ipv4_only")]
    pub(crate) dhcp6_start: Option<Ipv6Addr>,
    /// The host name that DHCP gives to guests
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// The domain name that DHCP gives to guests
    #[arg(long, value_name = "NAME")]
    pub(crate) domain: Option<String>,
    /// A domain for guests to search; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) dns_search: Vec<String>,
    /// The MTU of guests' interfaces in bytes, 576 to 65520 [default: 1500]
    ///
    /// Below 1280, guests have no IPv6, which needs that much.
    #[arg(long, value_name = "BYTES")]
    #[arg(value_parser = number::<u16>(576..=65_520), allow_negative_numbers = true)]
    pub(crate) mtu: Option<u16>,
    /// Keep guests off the host's own addresses, its loopback among them
    #[arg(long)]
    pub(crate) no_host_loopback: bool,
    /// Let guests reach the host's link-local range, 169.254.0.0/16
    ///
    /// It is closed otherwise: there, clouds tell a machine its secrets. With it come the other addresses
    /// that are known to do so: 100.100.100.200, 168.63.129.16, fd00:ec2::254, fd20:ce::254 and
    /// fd00:c1::a9fe:a9fe. fe80::/10 is a guest's own link and never leads to the host's.
    #[arg(long)]
    pub(crate) host_link_local: bool,
    /// Keep guests to themselves, as QEMU's restrict=on
    ///
    /// Nothing passes but DHCP, ping to the gateway and the DNS server, what comes in by --hostfwd, and
    /// frames between guests; DNS does not. All else is refused at once, and counted as `policy`. Guests are
    /// told of no router and no DNS server, and every peer of a forward appears to them as the gateway.
    #[arg(long, conflicts_with_all = ["multicast", "outbound_addr", "outbound_interface"])]
    #[arg(conflicts_with_all = ["host_link_local", "nat64", "dns_upstream"])]
    pub(crate) restrict: bool,
    /// Let guests ask the host's network for a service by multicast: mdns or ssdp; repeatable
    ///
    /// Their questions go out to the group as if the host had asked, and who answers within 10 seconds is let
    /// in. What guests announce stays inside, and so does whatever else they send to a group: it goes to
    /// other guests and no farther.
    #[arg(long, value_name = "SERVICE", value_parser = parse_service)]
    pub(crate) multicast: Vec<MulticastService>,
    /// The host's address that guests' flows leave by, one of each kind of IP [default: as routed]
    ///
    /// For TCP, UDP and pings to the outside; not for what stays on this host, replies of forwarded ports,
    /// or queries of the DNS server. While the host does not have the address, guests are told that the
    /// network is unreachable. slirp4netns: --outbound-addr, --outbound-addr6; passt: --outbound.
    #[arg(long, value_name = "ADDR", value_parser = parse_outbound)]
    pub(crate) outbound_addr: Vec<IpAddr>,
    /// The host's interface that guests' flows leave by [default: as routed]
    ///
    /// As for --outbound-addr. passt: --outbound-if4, --outbound-if6.
    #[arg(long, value_name = "NAME")]
    pub(crate) outbound_interface: Option<String>,
    /// Write every frame to this file, as pcapng
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// Threads that move frames, 64 at most [default: one a processor, 8 at most]
    ///
    /// A guest is served by one of them, or by one for each of its queues (exec --queues, run --queues,
    /// --vhost-user PATH,queues=N); there are no fewer by default. For exec and run, whose network has one guest,
    /// the default is as many as it has queues.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = number::<NonZeroU16>(1..=64), allow_negative_numbers = true)]
    pub(crate) workers: Option<NonZeroU16>,
}

/// How much to say.
#[derive(Debug, Args)]
pub(crate) struct Verbosity {
    /// Say more on stderr; repeat it for still more
    #[arg(short, long, action = ArgAction::Count, help_heading = "Options")]
    pub(crate) verbose: u8,
}

/// Ask a running daemon
///
/// The daemon answers HTTP with JSON, so that other programs can ask as well:
/// curl --unix-socket PATH http://usernet/v1/leases
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The daemon's control socket [default: where a daemon without --control puts it]
    #[arg(long, value_name = "unix:PATH", global = true)]
    pub(crate) control: Option<ControlPath>,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) request: CtlRequest,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CtlRequest {
    /// The addresses that guests hold
    Leases,
    /// The connections and conversations that go through the network
    Flows,
    /// The ports of the host that are forwarded to guests
    Forwards,
    /// How many frames were dropped, by reason
    Drops,
    /// The guests that are plugged in, with their counters
    Ports,
    /// Forward another port, until the daemon ends
    AddForward {
        /// As for --hostfwd: tcp:127.0.0.1:8080-:80
        rule: ForwardRule,
    },
    /// End a forward; connections that it accepted go on
    RemoveForward {
        /// Its number, as `usernet ctl forwards` shows it
        #[arg(value_parser = parse_id)]
        id: u32,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ExecGuestArgs {
    /// The descriptor of the socket that leads to the outer half
    #[arg(long)]
    pub(crate) socket: i32,
    #[arg(long)]
    pub(crate) queues: NonZeroU16,
    #[arg(trailing_var_arg = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

impl NetworkArgs {
    /// The configuration that the options describe, checked.
    fn config(&self) -> Result<Config, Usage> {
        self.check_kinds()?;
        let config = match &self.net {
            Some(net) => Config::for_net(net.address, net.prefix_len),
            None => Config::default(),
        };
        let config = Config {
            gateway: self.host.unwrap_or(config.gateway),
            dns: self.dns.unwrap_or(config.dns),
            ipv4: !self.ipv6_only,
            net6: self.net6()?,
            nat64: self.nat64,
            dns_upstreams: self.dns_upstream.clone(),
            dhcp_start: self.dhcp_start.unwrap_or(config.dhcp_start),
            hostname: self.hostname.clone(),
            domain: self.domain.clone(),
            dns_search: self.dns_search.clone(),
            mtu: self.mtu.unwrap_or(config.mtu),
            host_loopback: !self.no_host_loopback,
            host_link_local: self.host_link_local,
            restrict: self.restrict,
            multicast: self.multicast.clone(),
            outbound: self.outbound()?,
            forwards: self.hostfwd.clone(),
            pcap: self.pcap.clone(),
            workers: self.workers,
            ..config
        };
        config.validate().map_err(|error| Usage(error.to_string()))?;
        Ok(config)
    }

    /// The same for a network of one guest: unless told otherwise, as many workers as it has queues.
    pub(crate) fn config_of_one(&self, queues: NonZeroU16) -> Result<Config, Usage> {
        self.config_for("--queues ", queues, |_| queues)
    }

    /// The same for guests with as many queues as `option` says, where unless told otherwise there are so many
    /// `workers`.
    fn config_for(
        &self,
        option: &str,
        queues: NonZeroU16,
        workers: impl FnOnce(&Config) -> NonZeroU16,
    ) -> Result<Config, Usage> {
        let config = self.config()?;
        match self.workers {
            Some(given) if given < queues => Err(Usage(format!(
                "{option}{queues} needs as many workers, and --workers {given} gives fewer: leave it out, or use \
                 fewer queues"
            ))),
            given => Ok(Config { workers: Some(given.unwrap_or_else(|| workers(&config))), ..config }),
        }
    }

    /// Checks that no option is for a kind of IP that guests have nothing of.
    fn check_kinds(&self) -> Result<(), Usage> {
        let outbound = |v4| {
            let address = self.outbound_addr.iter().find(|address| address.is_ipv4() == v4)?;
            Some(format!("--outbound-addr {address}"))
        };
        let net = || self.net.as_ref().map(|_| "--net <CIDR>".to_owned());
        let host = || self.host.map(|_| "--host <ADDR>".to_owned());
        let (only, idle, unless) = match self {
            Self { ipv4_only: true, .. } => ("--ipv4-only", outbound(false), ""),
            // NAT64 puts the host where --net and --host say, and leaves by IPv4.
            Self { ipv6_only: true, nat64: false, .. } => {
                ("--ipv6-only", outbound(true).or_else(net).or_else(host), " without '--nat64'")
            }
            _ => return Ok(()),
        };
        idle.map_or(Ok(()), |idle| {
            Err(Usage(format!(
                "the argument '{only}' cannot be used with '{idle}'{unless} (usernet --help tells more)"
            )))
        })
    }

    fn outbound(&self) -> Result<Outbound, Usage> {
        let mut outbound = Outbound { interface: self.outbound_interface.clone(), ..Outbound::default() };
        for address in &self.outbound_addr {
            let other = match *address {
                IpAddr::V4(v4) => outbound.v4.replace(v4).map(IpAddr::from),
                IpAddr::V6(v6) => outbound.v6.replace(v6).map(IpAddr::from),
            };
            if let Some(other) = other {
                return Err(Usage(format!(
                    "--outbound-addr {address}: flows of its kind of IP leave by {other} already; give one \
                     IPv4 and one IPv6 address at most"
                )));
            }
        }
        Ok(outbound)
    }

    /// The IPv6 network: the one that is asked for, or the default where the MTU allows one.
    fn net6(&self) -> Result<Option<Net6>, Usage> {
        let asked = [
            ("--ipv6-only", self.ipv6_only),
            ("--nat64", self.nat64),
            ("--net6", self.net6.is_some()),
            ("--host6", self.host6.is_some()),
            ("--dns6", self.dns6.is_some()),
            ("--dhcp6-start", self.dhcp6_start.is_some()),
        ];
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < IPV6_MIN_MTU) {
            return asked.iter().find(|(_, given)| *given).map_or(Ok(None), |(option, _)| {
                Err(Usage(format!(
                    "--mtu {mtu} is too small for IPv6, which {option} asks for: give {IPV6_MIN_MTU} or more, or \
                     leave {option} out"
                )))
            });
        }
        if self.ipv4_only {
            return Ok(None);
        }
        let net = match &self.net6 {
            Some(net) => Net6::for_prefix(net.prefix, net.len),
            None => Net6::default(),
        };
        Ok(Some(Net6 {
            gateway: self.host6.unwrap_or(net.gateway),
            dns: self.dns6.unwrap_or(net.dns),
            dhcp_start: self.dhcp6_start.unwrap_or(net.dhcp_start),
            ..net
        }))
    }
}

/// A network's address and the length of its prefix.
#[derive(Clone, Debug)]
pub(crate) struct Cidr {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl FromStr for Cidr {
    type Err = &'static str;

    /// Reads `10.0.2.0/24`, and `10.0.2.0/255.255.255.0` as QEMU takes it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "a network is an address and a prefix length, such as 10.0.2.0/24";
        let (address, prefix) = text.split_once('/').ok_or(WANTED)?;
        let prefix_len = match prefix.parse::<Ipv4Addr>() {
            Ok(mask) if mask.to_bits().leading_ones() == mask.to_bits().count_ones() => {
                u8::try_from(mask.to_bits().leading_ones()).map_err(|_| WANTED)?
            }
            _ => prefix.parse().ok().filter(|len| *len <= 32).ok_or(WANTED)?,
        };
        Ok(Self { address: address.parse().map_err(|_| WANTED)?, prefix_len })
    }
}

/// An IPv6 prefix and its length.
#[derive(Clone, Debug)]
pub(crate) struct Prefix6 {
    prefix: Ipv6Addr,
    len: u8,
}

impl FromStr for Prefix6 {
    type Err = &'static str;

    /// Reads `fd00::/64`; without a length, 64 bits are meant, as for QEMU.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "an IPv6 network is a prefix and its length, such as fd00::/64";
        let (prefix, len) = text.split_once('/').unwrap_or((text, "64"));
        Ok(Self { prefix: prefix.parse().map_err(|_| WANTED)?, len: len.parse().map_err(|_| WANTED)? })
    }
}

/// The path of a Unix socket, as `unix:PATH` or just `PATH`.
#[derive(Clone, Debug)]
pub(crate) struct ControlPath(pub(crate) PathBuf);

impl FromStr for ControlPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:").unwrap_or(text) {
            "" => Err("a control socket is named by its path, such as unix:/run/user/1000/lab.sock"),
            path => Ok(Self(path.into())),
        }
    }
}

/// The options of a network one by one: of a group, clap names them all where it should name the one that
/// is given.
fn network_options() -> Vec<Id> {
    let network = NetworkArgs::augment_args(clap::Command::new("network"));
    network.get_arguments().map(|arg| arg.get_id().clone()).collect()
}

fn number<T: FromStr + Copy + Into<u16>>(
    range: RangeInclusive<u16>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number: &T| range.contains(&(*number).into()));
        number.ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
    }
}

fn parse_ipv4(text: &str) -> Result<Ipv4Addr, &'static str> {
    text.parse().map_err(|_| match text.parse::<Ipv6Addr>() {
        Ok(_) => "an IPv6 address is given with --host6, --dns6 or --dhcp6-start",
        Err(_) => "give an IPv4 address, such as 10.0.2.3",
    })
}

fn parse_ipv6(text: &str) -> Result<Ipv6Addr, &'static str> {
    text.parse().map_err(|_| match text.parse::<Ipv4Addr>() {
        Ok(_) => "an IPv4 address is given with --host, --dns or --dhcp-start",
        Err(_) => "give an IPv6 address, such as fd00::3",
    })
}

fn parse_id(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "give the number that `usernet ctl forwards` shows, such as 1")
}

fn parse_service(text: &str) -> Result<MulticastService, &'static str> {
    MulticastService::ALL.into_iter().find(|it| it.name() == text).ok_or("a service is mdns or ssdp")
}

fn parse_outbound(text: &str) -> Result<IpAddr, &'static str> {
    let address = text.parse::<IpAddr>().map_err(
        |_| "give an IPv4 or IPv6 address of this host; an interface is named by --outbound-interface",
    )?;
    Ok(address.to_canonical())
}

fn parse_upstream(text: &str) -> Result<SocketAddr, &'static str> {
    let with_port = text.parse().ok();
    let without = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53));
    with_port
        .or_else(without)
        .ok_or("an upstream is an address, such as 9.9.9.9, 127.0.0.1:5353 or [::1]:5353")
}

/// What clap found wrong, on one line. Its tip to put `--` before an unknown option would run that as a
/// program.
pub(crate) fn usage_error(error: &clap::Error) -> Usage {
    let text = error.render().to_string();
    let told = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let idle = |line: &str| ["For more", "tip: to pass"].iter().any(|start| line.starts_with(start));
    let told: Vec<_> = told.filter(|line| !line.is_empty() && !idle(line)).collect();
    let told = told.join("; ").replace(":; ", ": ");
    Usage(format!("{} (usernet --help tells more)", told.trim_start_matches("error: ")))
}

#[cfg(test)]
mod tests;
