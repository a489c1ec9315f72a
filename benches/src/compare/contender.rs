//! The contenders: how each is started, and where in it the work is done.
//!
//! Each ends up as a [`Shell`] in a network from which the servers are reached by an address. All run
//! as an ordinary user, in namespaces that go with their processes, and find free ports themselves.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::geteuid;
use serde_json::Value;

use super::machine::{self, Netdev};
use super::shell::Shell;
use crate::Programs;

/// How long a contender may take to start.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a machine may take to boot on an emulated processor.
const BOOT: Duration = Duration::from_secs(60);
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
}

impl Contender {
    pub(super) const ALL: [Self; 9] = [
        Self::Loopback,
        Self::Socat,
        Self::Veth,
        Self::Slirp4netns,
        Self::Pasta,
        Self::Usernet,
        Self::QemuLibslirp,
        Self::QemuPasst,
        Self::QemuUsernet,
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
        }
    }

    /// Whether it is `usernet`, with whatever guest.
    pub(super) fn is_usernet(self) -> bool {
        matches!(self, Self::Usernet | Self::QemuUsernet)
    }

    /// Whether it is one of the others that do what `usernet` does: give a guest a network.
    pub(super) fn is_peer(self) -> bool {
        matches!(self, Self::Slirp4netns | Self::Pasta | Self::QemuLibslirp | Self::QemuPasst)
    }

    /// Whether its guest is a virtual machine.
    pub(super) fn is_machine(self) -> bool {
        matches!(self, Self::QemuLibslirp | Self::QemuPasst | Self::QemuUsernet)
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
            Self::QemuLibslirp => (machine::QEMU.as_ref(), "--version", "libslirp0"),
            Self::QemuPasst => (Path::new("passt"), "--version", "passt"),
            Self::Usernet | Self::QemuUsernet => (lab.usernet.as_path(), "--version", ""),
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
        if self.is_machine() {
            let qemu = output(Command::new(machine::QEMU).arg("--version"))?;
            line = format!("{line}, {}", qemu.lines().next().unwrap_or_default());
        }
        Ok(Some(line))
    }

    /// Starts it with this MTU; it is there when [`Guest::settle`] says so.
    pub(super) fn start(self, lab: &Lab, mtu: u16) -> Result<Guest> {
        let servers = lab.servers.as_ref().context("there are no servers")?.1.clone();
        let gateway = |servers: Servers| Servers { host: "10.0.2.2".into(), ..servers };
        let complaints = lab.folder.join(format!("{}-{mtu}.log", self.name()));
        let shell = |command: &mut Command| Shell::start(command, complaints.clone());
        let mtu = mtu.to_string();
        Ok(match self {
            Self::Loopback => Guest::new(shell(&mut lab.user("sh"))?, servers),
            Self::Socat => {
                let log = complaints.with_extension("relay.log");
                let mut command = lab.user("socat");
                command.args(["-b", "131072", "-d", "-d", "TCP-LISTEN:0,bind=127.0.0.1,fork,nodelay"]);
                command.arg(format!("TCP:{},nodelay", servers.tcp()));
                let relay = Shell::start(&mut command, log.clone())?;
                let mut guest = Guest::new(shell(&mut lab.user("sh"))?, servers);
                guest.attach(relay);
                let port = format!("grep -o 'listening on .*' '{}' | grep -o '[0-9]*$'", log.display());
                guest.wait_for(&port, PATIENCE).context("socat does not listen")?;
                guest.servers.tcp = guest.shell.run(&port, PATIENCE)?.trim().to_owned();
                guest
            }
            Self::Veth => {
                let mut command = lab.user("unshare");
                command.args(["--user", "--map-root-user", "--net", "sh", "-c", VETH]);
                command.args(["sh", &mtu]);
                let shell = shell(&mut command)?;
                let servers = Servers::parse(&shell.line(PATIENCE)?)?;
                Guest::new(shell, gateway(servers))
            }
            Self::Slirp4netns => {
                let mut command = lab.user("unshare");
                command.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sh"]);
                let shell = shell(&mut command)?;
                shell.line(PATIENCE)?;
                let log = complaints.with_extension("relay.log");
                let mut command = lab.user("slirp4netns");
                command.args(["--configure", "--mtu", &mtu, "--exit-fd=0", "--ready-fd=1"]);
                command.args([&shell.pid().to_string(), "tap0"]);
                let relay = Shell::start(&mut command, log)?;
                let mut guest = Guest::new(shell, gateway(servers));
                guest.attach(relay);
                guest
                    .wait_for("ip -4 route | grep -q '^default.*tap0'", PATIENCE)
                    .context("slirp4netns makes no interface")?;
                guest
            }
            Self::Pasta => {
                let mut command = lab.user("pasta");
                command.args(["--quiet", "--config-net", "--mtu", &mtu]);
                command.args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"]);
                command.args(["--", "sh"]);
                Guest::relayed(shell(&mut command)?, gateway(servers))
            }
            Self::Usernet => {
                let mut command = lab.user(&lab.usernet);
                command.args(["exec", "--mtu", &mtu, "--", "sh"]);
                Guest::relayed(shell(&mut command)?, gateway(servers))
            }
            Self::QemuLibslirp => {
                Guest::machine(machine::start(lab, &Netdev::User, complaints)?, None, gateway(servers))
            }
            Self::QemuPasst | Self::QemuUsernet => {
                let socket = lab.work().join(self.name());
                let _ = fs::remove_file(&socket);
                let mut command =
                    lab.user(if self == Self::QemuPasst { "passt".as_ref() } else { &*lab.usernet });
                if self == Self::QemuPasst {
                    command.args(["--foreground", "--quiet", "--one-off", "--mtu", &mtu]);
                    command.args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"]);
                    command.arg("--socket").arg(&socket);
                } else {
                    let control = socket.with_extension("control");
                    let _ = fs::remove_file(&control);
                    command.args(["--mtu", &mtu, "--listen", &format!("unix:{}", socket.display())]);
                    command.args(["--control", &format!("unix:{}", control.display())]);
                }
                let relay = Shell::start(&mut command, complaints.with_extension("relay.log"))?;
                machine::wait_for_listener(&socket, PATIENCE).with_context(|| relay.complaint())?;
                let shell = machine::start(lab, &Netdev::Stream(socket), complaints)?;
                Guest::machine(shell, Some(relay), gateway(servers))
            }
        })
    }
}

/// The "host" has the servers and one end; the inner namespace, which the shell goes on in, the other.
/// Each ends with the shell: the server asks for that, a namespace lives as long as who is in it.
const VETH: &str = r#"
ip link set lo up
"$LOAD" serve --address 0.0.0.0 &
export HOST=$$ MTU=$1
unshare --net sh -c '
ip link set lo up
ip link add veth0 mtu $MTU type veth peer name veth1 mtu $MTU netns $HOST
ip address add 10.0.2.15/24 dev veth0
ip link set veth0 up
nsenter --target $HOST --net ip address add 10.0.2.2/24 dev veth1
nsenter --target $HOST --net ip link set veth1 up
exec sh'
"#;

/// Where the servers are, as their clients see it.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    host: String,
    tcp: String,
    idle: String,
    udp: String,
}

impl Servers {
    /// Reads what `usernet-load serve` prints.
    fn parse(line: &str) -> Result<Self> {
        let ports: Value = serde_json::from_str(line).with_context(|| format!("no ports: {line}"))?;
        let port = |name: &str| ports.get(name).map(Value::to_string).with_context(|| name.to_owned());
        Ok(Self { host: "127.0.0.1".into(), tcp: port("tcp")?, idle: port("idle")?, udp: port("udp")? })
    }

    pub(super) fn tcp(&self) -> String {
        format!("{}:{}", self.host, self.tcp)
    }

    pub(super) fn idle(&self) -> String {
        format!("{}:{}", self.host, self.idle)
    }

    pub(super) fn udp(&self) -> String {
        format!("{}:{}", self.host, self.udp)
    }
}

/// What all contenders share: the programs, a folder, the servers on the host's loopback.
pub(super) struct Lab {
    pub(super) folder: PathBuf,
    usernet: PathBuf,
    load: PathBuf,
    pub(super) core_load: PathBuf,
    /// What machines boot, or why they cannot.
    pub(super) image: Result<(), String>,
    servers: Option<(Shell, Servers)>,
}

impl Lab {
    /// Copies the programs to where an ordinary user may run them, and starts the servers.
    pub(super) fn new(folder: &Path, programs: &Programs) -> Result<Self> {
        let copy = |from: &Path, name: &str| -> Result<PathBuf> {
            let to = folder.join(name);
            fs::copy(from, &to).with_context(|| format!("no {}", from.display()))?;
            Ok(to)
        };
        let mut lab = Self {
            folder: folder.into(),
            usernet: copy(&programs.usernet, "usernet")?,
            load: copy(&programs.load, "usernet-load")?,
            core_load: programs.core_load.clone(),
            image: machine::build(&programs.kernel, folder, &programs.load)
                .map_err(|error| format!("{error:#}")),
            servers: None,
        };
        fs::create_dir(lab.work())?;
        if geteuid().is_root() {
            chown(lab.work(), Some(ORDINARY), Some(ORDINARY))?;
        }
        let mut command = lab.user(&lab.load);
        let shell = Shell::start(command.arg("serve"), folder.join("servers.log"))?;
        let servers = Servers::parse(&shell.line(PATIENCE)?)?;
        lab.servers = Some((shell, servers));
        Ok(lab)
    }

    /// A folder that an ordinary user may write to.
    fn work(&self) -> PathBuf {
        self.folder.join("work")
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

/// A contender that runs.
pub(super) struct Guest {
    /// Where the work is done. Dropped first: the relay goes when its guest has gone.
    shell: Shell,
    /// The relay, where that is another program than the one that the shell runs in.
    around: Option<Shell>,
    /// The process that moves the bytes.
    relay: Option<u32>,
    pub(super) servers: Servers,
    is_machine: bool,
}

impl Guest {
    fn new(shell: Shell, servers: Servers) -> Self {
        Self { shell, around: None, relay: None, servers, is_machine: false }
    }

    /// A virtual machine, which may have its network from another process.
    fn machine(shell: Shell, around: Option<Shell>, servers: Servers) -> Self {
        Self { around, is_machine: true, ..Self::new(shell, servers) }
    }

    /// Waits until all of it is set up.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.is_machine {
            machine::set_up(&mut self.shell, BOOT)?;
        }
        self.shell.run("true", PATIENCE)?;
        Ok(())
    }

    /// Whether it can do more work: not when the last is still not over.
    pub(super) fn is_idle(&mut self) -> bool {
        self.shell.run("true", Duration::from_secs(1)).is_ok()
    }

    /// A guest whose network is the process that it was started by.
    fn relayed(shell: Shell, servers: Servers) -> Self {
        let relay = Some(shell.pid());
        Self { relay, ..Self::new(shell, servers) }
    }

    /// Runs a command of `usernet-load` and reads its result.
    pub(super) fn load(&mut self, arguments: &str, patience: Duration) -> Result<Value> {
        parse(&self.shell.run(&format!(r#""$LOAD" {arguments}"#), patience)?)
    }

    /// Has `usernet-load` hold idle connections in the background, and waits until it does.
    pub(super) fn hold(&mut self, count: usize, patience: Duration) -> Result<()> {
        let server = self.servers.idle();
        let answer = format!("hold-$$-{count}");
        let time = patience.as_millis();
        let command = format!(r#""$LOAD" hold {server} {count} --time {time} >{answer} 2>&1 &"#);
        self.shell.run(&command, PATIENCE)?;
        self.wait_for(&format!("test -s {answer}"), patience + PATIENCE)
            .with_context(|| format!("{count} idle flows were not to be had"))?;
        let answer = self.shell.run(&format!("cat {answer}; rm {answer}"), PATIENCE)?;
        ensure!(parse(&answer).is_ok(), "{}", answer.trim());
        Ok(())
    }

    /// Waits until `script` succeeds.
    fn wait_for(&mut self, script: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while let Err(error) = self.shell.run(script, PATIENCE) {
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn attach(&mut self, relay: Shell) {
        self.relay = Some(relay.pid());
        self.around = Some(relay);
    }

    /// The processor time that the relay has used; none where the kernel is the network.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        let relay = self.relay?;
        let mut ticks = ticks(relay)?;
        // A relay with a shell of its own for a child has the guest for one; others make their children
        // for connections.
        if self.around.is_some() {
            let children = fs::read_to_string(format!("/proc/{relay}/task/{relay}/children")).ok()?;
            ticks +=
                children.split_whitespace().filter_map(|child| self::ticks(child.parse().ok()?)).sum::<u64>();
        }
        Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// The resident memory of the relay in bytes.
    pub(super) fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.relay?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }
}

/// The processor time of a process and of its children that have ended, in clock ticks.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 to 17 (man 5 proc_pid_stat), counted from behind the name, which is the second.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line.trim()).with_context(|| format!("not a result: {}", line.trim()))
}
