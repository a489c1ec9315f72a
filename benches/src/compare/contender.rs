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

use super::shell::Shell;
use crate::Programs;

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
}

impl Contender {
    pub(super) const ALL: [Self; 6] =
        [Self::Loopback, Self::Socat, Self::Veth, Self::Slirp4netns, Self::Pasta, Self::Usernet];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Socat => "socat",
            Self::Veth => "veth",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
            Self::Usernet => "usernet",
        }
    }

    /// Whether it does what `usernet` does: gives a guest a network.
    pub(super) fn is_network(self) -> bool {
        self.is_peer() || self == Self::Usernet
    }

    /// Whether it is one of the others that do.
    pub(super) fn is_peer(self) -> bool {
        matches!(self, Self::Slirp4netns | Self::Pasta)
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
            Self::Usernet => (lab.usernet.as_path(), "--version", ""),
        };
        let output = |command: &mut Command| {
            let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let own = output(Command::new(program).arg(option))?;
        // Not every one of them knows.
        let package = output(Command::new("dpkg-query").args(["--show", package])).unwrap_or_default();
        let line = if package.is_empty() { own.lines().next().unwrap_or_default() } else { &package };
        Ok(Some(line.replace('\t', " ")))
    }

    /// Starts it with this MTU.
    pub(super) fn start(self, lab: &Lab, mtu: u16) -> Result<Guest> {
        let mut guest = self.start_guest(lab, mtu)?;
        // Only then is all of it set up.
        guest.shell.run("true", PATIENCE)?;
        Ok(guest)
    }

    fn start_guest(self, lab: &Lab, mtu: u16) -> Result<Guest> {
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
        let work = folder.join("work");
        fs::create_dir(&work)?;
        if geteuid().is_root() {
            chown(&work, Some(ORDINARY), Some(ORDINARY))?;
        }
        let mut lab = Self {
            folder: folder.into(),
            usernet: copy(&programs.usernet, "usernet")?,
            load: copy(&programs.load, "usernet-load")?,
            servers: None,
        };
        let mut command = lab.user(&lab.load);
        let shell = Shell::start(command.arg("serve"), folder.join("servers.log"))?;
        let servers = Servers::parse(&shell.line(PATIENCE)?)?;
        lab.servers = Some((shell, servers));
        Ok(lab)
    }

    /// A command that an ordinary user runs.
    fn user(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        // Where this program is killed, so is what it has started.
        command.args(["--pdeathsig", "KILL"]);
        if geteuid().is_root() {
            let user = ORDINARY.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all"]);
        }
        command.arg("--").arg(program.as_ref()).current_dir(self.folder.join("work")).env("LOAD", &self.load);
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
}

impl Guest {
    fn new(shell: Shell, servers: Servers) -> Self {
        Self { shell, around: None, relay: None, servers }
    }

    /// A guest whose network is the process that it was started by.
    fn relayed(shell: Shell, servers: Servers) -> Self {
        let relay = Some(shell.pid());
        Self { shell, around: None, relay, servers }
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
