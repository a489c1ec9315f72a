//! What all contenders share: the servers, the programs, and relays that guests are plugged in to.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::{Display, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::geteuid;
use serde_json::Value;

use super::contender::Contender;
use super::machine;
use super::shell::Shell;
use crate::machine::{build_qemu, build_uml};
use crate::{Family, Programs};

/// How long a contender may take to start.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// An ordinary user's number. It need not have a name.
const ORDINARY: u32 = 12345;

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
    pub(super) fn at_gateway(&self) -> Self {
        Self { host: self.family().gateway(), ..*self }
    }

    /// The same behind a relay of TCP.
    pub(super) fn behind(&self, tcp: u16) -> Self {
        Self { tcp, ..*self }
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
pub(super) struct Relay {
    pub(super) shell: Shell,
    /// The socket.
    pub(super) socket: PathBuf,
}

impl Relay {
    pub(super) fn start(mut command: Command, socket: PathBuf) -> Result<Self> {
        let _ = fs::remove_file(&socket);
        let shell = Shell::start(&mut command, socket.with_extension("log"))?;
        machine::wait_for_listener(&socket, PATIENCE).with_context(|| shell.complaint())?;
        Ok(Self { shell, socket })
    }
}

/// What all contenders share: the programs, a folder, the servers on the host's loopback.
pub(super) struct Lab {
    pub(super) folder: PathBuf,
    pub(super) usernet: PathBuf,
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

    /// The servers of each family, as they are reached without any network.
    pub(super) fn servers(&self) -> Vec<Servers> {
        self.servers.iter().map(|(_, servers)| *servers).collect()
    }

    /// A folder that an ordinary user may write to.
    fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Where the relay of a contender is to listen.
    pub(super) fn socket(&self, contender: Contender, mtu: &str) -> PathBuf {
        self.work().join(format!("{}-{mtu}", contender.name()))
    }

    /// Starts a `usernet` that listens for guests, by the options that `listen` makes of the socket.
    pub(super) fn relay(
        &self,
        of: Contender,
        mtu: &str,
        listen: impl Fn(Display<'_>) -> [String; 2],
    ) -> Result<Relay> {
        let socket = self.socket(of, mtu);
        let control = socket.with_extension("control");
        let _ = fs::remove_file(&control);
        let mut command = self.user(&self.usernet);
        command.args(["--mtu", mtu, "--control", &format!("unix:{}", control.display())]);
        command.args(listen(socket.display()));
        Relay::start(command, socket)
    }

    /// Starts a `usernet` that listens for front ends with so many pairs of queues.
    pub(super) fn vhost_user(&self, of: Contender, mtu: &str, pairs: u16) -> Result<Relay> {
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
