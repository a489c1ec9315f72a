//! The contenders: how each is started, and where in it the work is done.
//!
//! Each ends up as a [`Shell`] in a network from which the servers are reached by an address. All run
//! as an ordinary user, in namespaces that go with their processes, and find free ports themselves.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::{Display, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::geteuid;
use serde_json::Value;

use super::guest::Guest;
use super::machine;
use super::shell::Shell;
use super::work::Place;
use crate::machine::{Card, Netdev, QEMU, UML, build_qemu, build_uml};
use crate::{Family, Programs};

/// How long a contender may take to start.
const PATIENCE: Duration = Duration::from_secs(15);
/// An ordinary user's number. It need not have a name.
const ORDINARY: u32 = 12345;

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
        let servers: Vec<_> = lab.servers.iter().map(|(_, servers)| *servers).collect();
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
                    guest.servers.push(Servers { tcp: port.trim().parse()?, ..servers });
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

/// Where the servers of one family are, as their clients see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Servers {
    host: IpAddr,
    tcp: u16,
    idle: u16,
    udp: u16,
}

impl Servers {
    /// Reads what `usernet-load serve` prints.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let told: Value = serde_json::from_str(line).with_context(|| format!("no ports: {line}"))?;
        let host = told.get("address").and_then(Value::as_str).context("no address")?.parse()?;
        let port = |name: &str| {
            let port = told.get(name).and_then(Value::as_u64).with_context(|| format!("no {name}"))?;
            Ok::<_, anyhow::Error>(u16::try_from(port)?)
        };
        Ok(Self { host, tcp: port("tcp")?, idle: port("idle")?, udp: port("udp")? })
    }

    /// The same by the address that guests know the host by.
    fn at_gateway(&self) -> Self {
        Self { host: self.family().gateway(), ..*self }
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.host)
    }

    pub(super) fn tcp(&self) -> SocketAddr {
        (self.host, self.tcp).into()
    }

    pub(super) fn idle(&self) -> SocketAddr {
        (self.host, self.idle).into()
    }

    pub(super) fn udp(&self) -> SocketAddr {
        (self.host, self.udp).into()
    }
}

/// A relay that guests are plugged in to at a socket.
struct Relay {
    shell: Shell,
    socket: PathBuf,
}

impl Relay {
    fn start(mut command: Command, socket: PathBuf) -> Result<Self> {
        let _ = fs::remove_file(&socket);
        let shell = Shell::start(&mut command, socket.with_extension("log"))?;
        machine::wait_for_listener(&socket, PATIENCE).with_context(|| shell.complaint())?;
        Ok(Self { shell, socket })
    }
}

/// What all contenders share: the programs, a folder, the servers on the host's loopback.
pub(super) struct Lab {
    pub(super) folder: PathBuf,
    usernet: PathBuf,
    load: PathBuf,
    pub(super) core_load: PathBuf,
    /// What QEMU machines boot, or why they cannot.
    pub(super) image: Result<(), String>,
    /// What User Mode Linux machines boot, or why they cannot.
    pub(super) uml_image: Result<PathBuf, String>,
    servers: Vec<(Shell, Servers)>,
}

impl Lab {
    /// Copies the programs to where an ordinary user may run them, and starts the servers.
    pub(super) fn new(folder: &Path, programs: &Programs) -> Result<Self> {
        let copy = |from: &Path, name: &str| -> Result<PathBuf> {
            let to = folder.join(name);
            fs::copy(from, &to).with_context(|| format!("no {}", from.display()))?;
            Ok(to)
        };
        let uml = folder.join("uml");
        fs::create_dir(&uml)?;
        let mut lab = Self {
            folder: folder.into(),
            usernet: copy(&programs.usernet, "usernet")?,
            load: copy(&programs.load, "usernet-load")?,
            core_load: programs.core_load.clone(),
            image: build_qemu(&programs.kernel, folder, &[&programs.load])
                .map_err(|error| format!("{error:#}")),
            uml_image: build_uml(&uml, &[&programs.load]).map(|()| uml).map_err(|error| format!("{error:#}")),
            servers: Vec::new(),
        };
        fs::create_dir(lab.work())?;
        if geteuid().is_root() {
            chown(lab.work(), Some(ORDINARY), Some(ORDINARY))?;
        }
        for address in ["127.0.0.1", "::1"] {
            let mut command = lab.user(&lab.load);
            command.args(["serve", "--address", address]);
            let shell = Shell::start(&mut command, folder.join(format!("servers-{address}.log")))?;
            let servers = shell.line(PATIENCE).and_then(|line| Servers::parse(&line));
            let servers = servers.with_context(|| format!("there are no servers at {address}"))?;
            lab.servers.push((shell, servers));
        }
        Ok(lab)
    }

    /// A folder that an ordinary user may write to.
    fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Where the relay of a contender is to listen.
    fn socket(&self, contender: Contender, mtu: &str) -> PathBuf {
        self.work().join(format!("{}-{mtu}", contender.name()))
    }

    /// Starts a `usernet` that listens for guests, by the options that `listen` makes of the socket.
    fn relay(&self, of: Contender, mtu: &str, listen: impl Fn(Display<'_>) -> [String; 2]) -> Result<Relay> {
        let socket = self.socket(of, mtu);
        let control = socket.with_extension("control");
        let _ = fs::remove_file(&control);
        let mut command = self.user(&self.usernet);
        command.args(["--mtu", mtu, "--control", &format!("unix:{}", control.display())]);
        command.args(listen(socket.display()));
        Relay::start(command, socket)
    }

    /// Starts a `usernet` that listens for front ends with so many pairs of queues.
    fn vhost_user(&self, of: Contender, mtu: &str, pairs: u16) -> Result<Relay> {
        self.relay(of, mtu, |socket| ["--vhost-user".into(), format!("{socket},queues={pairs}")])
    }

    /// A command that an ordinary user runs.
    pub(super) fn user(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        // Where this program is killed, so is what it has started.
        command.args(["--pdeathsig", "KILL"]);
        if geteuid().is_root() {
            let user = ORDINARY.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all"]);
        }
        command.arg("--").arg(program.as_ref()).current_dir(self.work()).env("LOAD", &self.load);
        command
    }
}
