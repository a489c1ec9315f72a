//! The contenders: how each is started, and where in it the work is done.
//!
//! Each ends up as a [`Shell`] in a network from which the servers are reached by an address. All run
//! as an ordinary user, in namespaces that go with their processes, and find free ports themselves.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::guest::Guest;
use super::lab::{Lab, PATIENCE, Relay, Servers};
use super::machine;
use super::shell::Shell;
use super::work::Place;
use crate::Family;
use crate::machine::{Card, Netdev, QEMU, UML};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Contender {
    /// No network at all: both ends in one namespace.
    Loopback,
    /// A relay of sockets without packets.
    Socat,
    /// Two namespaces and the kernel between them.
    Veth,
    Slirp4netns,
    Pasta,
    Usernet,
    /// A QEMU guest on QEMU's own network.
    QemuLibslirp,
    /// A QEMU guest on the stream socket of `passt`.
    QemuPasst,
    /// A QEMU guest on a stream socket of `usernet`.
    QemuUsernet,
    /// A QEMU guest whose rings `usernet` has.
    QemuVhostUser,
    /// The same with two processors and a pair of queues for each.
    QemuTwoQueues,
    /// Rings that `usernet` has, of a guest without a kernel.
    Rings,
    /// The loopback of a User Mode Linux guest: no network at all.
    UmlLoopback,
    /// A User Mode Linux guest on a TAP device with segmentation offload, and the kernel behind that.
    UmlTap,
    /// A User Mode Linux guest whose rings `usernet` has.
    UmlUsernet,
}

impl Contender {
    pub(super) const ALL: [Self; 15] = [
        Self::Loopback,
        Self::Socat,
        Self::Veth,
        Self::Slirp4netns,
        Self::Pasta,
        Self::Usernet,
        Self::Rings,
        Self::QemuLibslirp,
        Self::QemuPasst,
        Self::QemuUsernet,
        Self::QemuVhostUser,
        Self::QemuTwoQueues,
        Self::UmlLoopback,
        Self::UmlTap,
        Self::UmlUsernet,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Socat => "socat",
            Self::Veth => "veth",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
            Self::Usernet => "usernet",
            Self::QemuLibslirp => "qemu-libslirp",
            Self::QemuPasst => "qemu-passt",
            Self::QemuUsernet => "qemu-usernet",
            Self::QemuVhostUser => "qemu-vhost-user",
            Self::QemuTwoQueues => "qemu-two-queues",
            Self::Rings => "rings",
            Self::UmlLoopback => "uml-loopback",
            Self::UmlTap => "uml-tap",
            Self::UmlUsernet => "uml-usernet",
        }
    }

    /// Whether it is `usernet`, with whatever guest.
    pub(super) fn is_usernet(self) -> bool {
        matches!(
            self,
            Self::Usernet
                | Self::Rings
                | Self::QemuUsernet
                | Self::QemuVhostUser
                | Self::QemuTwoQueues
                | Self::UmlUsernet
        )
    }

    /// Whether it is one of the others that do what `usernet` does: give a guest a network.
    pub(super) fn is_peer(self) -> bool {
        matches!(self, Self::Slirp4netns | Self::Pasta | Self::QemuLibslirp | Self::QemuPasst)
    }

    /// Where its work is done.
    pub(super) fn place(self) -> Place {
        match self {
            Self::QemuLibslirp
            | Self::QemuPasst
            | Self::QemuUsernet
            | Self::QemuVhostUser
            | Self::QemuTwoQueues => Place::Qemu,
            Self::UmlLoopback | Self::UmlTap | Self::UmlUsernet => Place::Uml,
            _ => Place::Namespace,
        }
    }

    /// Whether its guest has a pair of queues for each of two streams, which it is there to show.
    pub(super) fn has_two_queues(self) -> bool {
        matches!(self, Self::Rings | Self::QemuTwoQueues)
    }

    /// Whether it gives a network to a namespace.
    pub(super) fn is_on_tap(self) -> bool {
        matches!(self, Self::Slirp4netns | Self::Pasta | Self::Usernet)
    }

    /// The version of the program; none for what is the kernel's.
    ///
    /// # Errors
    /// The program cannot be run.
    pub(super) fn version(self, lab: &Lab) -> Result<Option<String>> {
        let (program, option, package) = match self {
            Self::Loopback | Self::Veth => return Ok(None),
            Self::Socat => (Path::new("socat"), "-V", "socat"),
            Self::Slirp4netns => (Path::new("slirp4netns"), "--version", "slirp4netns"),
            Self::Pasta => (Path::new("pasta"), "--version", "passt"),
            Self::QemuLibslirp => (QEMU.as_ref(), "--version", "libslirp0"),
            Self::QemuPasst => (Path::new("passt"), "--version", "passt"),
            Self::UmlLoopback | Self::UmlTap => (UML.as_ref(), "--version", "user-mode-linux"),
            Self::Usernet
            | Self::Rings
            | Self::QemuUsernet
            | Self::QemuVhostUser
            | Self::QemuTwoQueues
            | Self::UmlUsernet => (lab.usernet.as_path(), "--version", ""),
        };
        let output = |command: &mut Command| {
            let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let own = output(Command::new(program).arg(option))?;
        // Not every one of them knows.
        let package = output(Command::new("dpkg-query").args(["--show", package])).unwrap_or_default();
        let line = if package.is_empty() { own.lines().next().unwrap_or_default() } else { &package };
        let mut line = line.replace('\t', " ");
        if self.place() == Place::Qemu {
            let qemu = output(Command::new(QEMU).arg("--version"))?;
            line = format!("{line}, {}", qemu.lines().next().unwrap_or_default());
        }
        Ok(Some(line))
    }

    /// Starts it with this MTU; it is there when [`Guest::settle`] says so.
    pub(super) fn start(self, lab: &Lab, mtu: u16) -> Result<Guest> {
        let servers = lab.servers();
        let at_gateway = || servers.iter().map(|servers| servers.at_gateway()).collect();
        let complaints = lab.folder.join(format!("{}-{mtu}.log", self.name()));
        let shell = |command: &mut Command| Shell::start(command, complaints.clone());
        let mtu = mtu.to_string();
        Ok(match self {
            Self::Loopback => Guest::new(shell(&mut lab.user("sh"))?, servers),
            Self::Socat => {
                let mut guest = Guest::new(shell(&mut lab.user("sh"))?, Vec::new());
                for servers in servers {
                    let log = complaints.with_extension(format!("{:?}.log", servers.family()));
                    let mut command = lab.user("socat");
                    let listen = match servers.family() {
                        Family::V4 => "TCP4-LISTEN:0,bind=127.0.0.1,fork,nodelay",
                        Family::V6 => "TCP6-LISTEN:0,bind=[::1],fork,nodelay",
                    };
                    command.args(["-b", "131072", "-d", "-d", listen]);
                    command.arg(format!("TCP:{},nodelay", servers.tcp()));
                    guest.attach(Shell::start(&mut command, log.clone())?);
                    let port = format!("grep -o 'listening on .*' '{}' | grep -o '[0-9]*$'", log.display());
                    let port = guest.wait_for(&port, PATIENCE).context("socat does not listen")?;
                    guest.servers.push(servers.behind(port.trim().parse()?));
                }
                guest
            }
            Self::Veth => {
                let mut command = lab.user("unshare");
                command.args(["--user", "--map-root-user", "--net", "sh", "-c", VETH]);
                command.args(["sh", &mtu]);
                let shell = shell(&mut command)?;
                let servers = Family::ALL.map(|_| Ok(Servers::parse(&shell.line(PATIENCE)?)?.at_gateway()));
                Guest::new(shell, servers.into_iter().collect::<Result<_>>()?)
            }
            Self::Slirp4netns => {
                let mut command = lab.user("unshare");
                command.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sh"]);
                let shell = shell(&mut command)?;
                shell.line(PATIENCE)?;
                let log = complaints.with_extension("relay.log");
                let mut command = lab.user("slirp4netns");
                command.args(["--configure", "--enable-ipv6", "--mtu", &mtu]);
                command.args(["--exit-fd=0", "--ready-fd=1", &shell.pid().to_string(), "tap0"]);
                let relay = Shell::start(&mut command, log)?;
                let mut guest = Guest::new(shell, at_gateway());
                guest.attach(relay);
                guest
                    .wait_for("ip -4 route | grep -q '^default.*tap0'", PATIENCE)
                    .context("slirp4netns makes no interface")?;
                guest
            }
            Self::Pasta => {
                let mut command = lab.user("pasta");
                command.args(["--quiet", "--config-net", "--mtu", &mtu]).args(PASST_ADDRESSES);
                command.args(["--", "sh"]);
                Guest::relayed(shell(&mut command)?, at_gateway())
            }
            Self::Usernet => {
                let mut command = lab.user(&lab.usernet);
                command.args(["exec", "--mtu", &mtu, "--", "sh"]);
                Guest::relayed(shell(&mut command)?, at_gateway())
            }
            Self::QemuLibslirp => {
                Guest::machine(machine::start(lab, Netdev::User, 1, complaints)?, None, at_gateway())
            }
            Self::QemuPasst => {
                let socket = lab.socket(self, &mtu);
                let mut command = lab.user("passt");
                command.args(["--foreground", "--quiet", "--one-off", "--mtu", &mtu]);
                command.args(PASST_ADDRESSES).arg("--socket").arg(&socket);
                let relay = Relay::start(command, socket)?;
                let shell = machine::start(lab, Netdev::Stream(&relay.socket), 1, complaints)?;
                Guest::machine(shell, Some(relay.shell), at_gateway())
            }
            Self::QemuUsernet => {
                let relay = lab.relay(self, &mtu, |socket| ["--listen".into(), format!("unix:{socket}")])?;
                let shell = machine::start(lab, Netdev::Stream(&relay.socket), 1, complaints)?;
                Guest::machine(shell, Some(relay.shell), at_gateway())
            }
            Self::QemuVhostUser | Self::QemuTwoQueues => {
                let pairs = if self == Self::QemuTwoQueues { 2 } else { 1 };
                let relay = lab.vhost_user(self, &mtu, pairs)?;
                let shell = machine::start(lab, Netdev::VhostUser(&relay.socket), pairs, complaints)?;
                Guest::machine(shell, Some(relay.shell), at_gateway())
            }
            Self::Rings => {
                let relay = lab.vhost_user(self, &mtu, 2)?;
                let mut guest = Guest::new(shell(&mut lab.user("sh"))?, at_gateway());
                guest.load = format!("{} rings '{}' --mtu {mtu}", guest.load, relay.socket.display());
                guest.attach(relay.shell);
                guest
            }
            Self::UmlLoopback => {
                let line = machine::uml_line(lab, Card::None)?;
                Guest::machine(shell(lab.user("env").args(line))?, None, Vec::new())
            }
            Self::UmlTap => {
                let mut command = lab.user("unshare");
                command.args(["--user", "--map-root-user", "--net", "sh", "-c", UML_TAP, "sh", &mtu]);
                command.args(machine::uml_line(lab, Card::Tap("tap0", mtu.parse()?))?);
                let shell = shell(&mut command)?;
                let servers = Family::ALL.map(|_| Ok(Servers::parse(&shell.line(PATIENCE)?)?.at_gateway()));
                Guest::machine(shell, None, servers.into_iter().collect::<Result<_>>()?)
            }
            Self::UmlUsernet => {
                let relay = lab.vhost_user(self, &mtu, 1)?;
                let line = machine::uml_line(lab, Card::VhostUser(&relay.socket))?;
                let mut guest = Guest::machine(shell(lab.user("env").args(line))?, None, at_gateway());
                guest.attach(relay.shell);
                guest
            }
        })
    }
}

/// The addresses of guests and of the host, as `passt` and `pasta` take them.
const PASST_ADDRESSES: [&str; 10] = [
    "--address",
    "10.0.2.15",
    "--netmask",
    "24",
    "--gateway",
    "10.0.2.2",
    "--address",
    "fd00::15",
    "--gateway",
    "fd00::2",
];

/// The "host" has the servers and one end; the inner namespace, which the shell goes on in, the other.
/// Each ends with the shell: the servers ask for that, a namespace lives as long as who is in it.
const VETH: &str = r#"
ip link set lo up
"$LOAD" serve --address 0.0.0.0 &
"$LOAD" serve --address :: &
export HOST=$$ MTU=$1
unshare --net sh -c '
ip link set lo up
ip link add veth0 mtu $MTU type veth peer name veth1 mtu $MTU netns $HOST
ip address add 10.0.2.15/24 dev veth0
ip address add fd00::15/64 dev veth0 nodad
ip link set veth0 up
nsenter --target $HOST --net ip address add 10.0.2.2/24 dev veth1
nsenter --target $HOST --net ip address add fd00::2/64 dev veth1 nodad
nsenter --target $HOST --net ip link set veth1 up
exec sh'
"#;

/// The "host" has the servers and one end of the cable; the machine, which goes on in its place, the other.
const UML_TAP: &str = r#"
ip link set lo up
"$LOAD" serve --address 0.0.0.0 &
"$LOAD" serve --address :: &
ip tuntap add tap0 mode tap user 0 vnet_hdr
ip address add 10.0.2.2/24 dev tap0
ip address add fd00::2/64 dev tap0 nodad
ip link set tap0 mtu "$1" up
shift
exec "$@"
"#;
