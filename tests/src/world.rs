//! The host that a test sees.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use crate::process::{Outcome, finish};

/// The host's address on its LAN. So is every other of 192.0.2.0/24.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The host's address on its LAN over IPv6, in a [`World::with_ipv6`].
pub const LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// An address whose network the host knows to be unreachable (`EHOSTUNREACH`).
pub const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// An address that the host has no route to (`ENETUNREACH`).
pub const NO_ROUTE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// An IPv6 address that the host has no route to.
pub const NO_ROUTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

/// The host, as guests see it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The host, as guests see it over IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// The DNS server, as guests see it.
pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The DNS server, as guests see it over IPv6.
pub const NAMESERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

/// The guest's interface, in its shell.
pub const INTERFACE: &str = "$(ip -o link show | grep -o 'tap[0-9]*' | head -n 1)";

/// An ordinary user's number, and its group's. It need not have a name.
const ORDINARY: u32 = 12345;

/// How long a program that is run to its end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// An ordinary user with no privilege at all.
    User,
    /// Root of the machine (or of the user namespace that the tests run in).
    Root,
}

/// A host of the test's own: a network namespace, a folder, and an ordinary user.
pub struct World {
    dir: TempDir,
}

impl World {
    /// Moves the calling thread into a new network namespace, in which ping sockets are allowed to
    /// all. Threads and programs that it starts from now on are in it too.
    ///
    /// # Panics
    /// The test does not run as root, not even of a user namespace.
    #[expect(clippy::new_without_default, reason = "it moves the thread: more than a value")]
    pub fn new() -> Self {
        assert!(geteuid().is_root(), "run the tests by `cargo xtask test`: they make network namespaces");
        unshare_network();
        ip("link set lo up");
        ip("address add 192.0.2.1/24 dev lo");
        ip("route add unreachable 198.51.100.0/24");
        let world = Self { dir: tempfile::Builder::new().prefix("usernet-test-").tempdir().unwrap() };
        world.allow_ping(true);

        let folder = world.dir.path();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        // The build's own folder may lie where the ordinary user cannot reach.
        fs::copy(usernet_binary(), world.usernet()).unwrap();
        fs::copy(program("probe"), world.probe()).unwrap();
        for private in ["home", "run"] {
            let private = folder.join(private);
            fs::create_dir(&private).unwrap();
            fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
            if can_drop_privilege() {
                chown(&private, Some(ORDINARY), Some(ORDINARY)).unwrap();
            }
        }
        world
    }

    /// The same of a host that has IPv6 on its LAN ([`LAN6`]), though no route to the world beyond.
    ///
    /// # Panics
    /// As [`World::new`].
    pub fn with_ipv6() -> Self {
        let world = Self::new();
        ip(&format!("address add {LAN6}/64 dev lo nodad"));
        world
    }

    /// The ordinary user's home: the folder that programs start in, and may write to.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The ordinary user's `XDG_RUNTIME_DIR`.
    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The program that reports what a guest program sees (`src/bin/probe.rs`).
    pub fn probe(&self) -> PathBuf {
        self.dir.path().join("probe")
    }

    /// The program at the guest's end of a QUIC transfer (`src/bin/quic.rs`).
    pub fn quic(&self) -> PathBuf {
        let path = self.dir.path().join("quic");
        fs::copy(program("quic"), &path).unwrap();
        path
    }

    /// The program under test.
    pub fn usernet(&self) -> PathBuf {
        self.dir.path().join("usernet")
    }

    /// A command in this world, run by `who`. It dies with the test.
    pub fn command(&self, who: As, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if who == As::User && can_drop_privilege() {
            let id = ORDINARY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"]);
        }
        command.arg("--").arg(program.as_ref());
        command.current_dir(self.home()).env("HOME", self.home()).env("XDG_RUNTIME_DIR", self.runtime_dir());
        command
    }

    /// Runs `usernet` with these arguments to its end, as an ordinary user.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_as(As::User, arguments)
    }

    /// Runs `usernet` with these arguments to its end.
    pub fn run_as(&self, who: As, arguments: &[&str]) -> Outcome {
        let mut command = self.command(who, self.usernet());
        command.args(arguments);
        finish(command, PATIENCE)
    }

    /// Runs a shell script in a namespace guest, as an ordinary user: `usernet exec OPTIONS -- sh
    /// -c SCRIPT`. The script finds the probe as `$PROBE`.
    pub fn exec(&self, options: &[&str], script: &str) -> Outcome {
        finish(self.exec_command(options, script), PATIENCE)
    }

    /// The command that [`World::exec`] runs.
    pub fn exec_command(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.command(As::User, self.usernet());
        command.arg("exec").args(options).args(["--", "sh", "-c", script]).env("PROBE", self.probe());
        command
    }

    /// Says whether ping sockets are allowed to all or to nobody, as they are when a machine starts.
    pub fn allow_ping(&self, allowed: bool) {
        // A user namespace may name only groups that it has: 0 stands for all there.
        let range = match (allowed, can_drop_privilege()) {
            (true, true) => "0 2147483647",
            (true, false) => "0 0",
            (false, _) => "1 0",
        };
        fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
    }
}

/// Runs `ip` in the namespace of the calling thread.
///
/// # Panics
/// It fails.
pub fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    finish(command, PATIENCE).ok();
}

#[expect(unsafe_code, reason = "there is no safe call for it")]
fn unshare_network() {
    // SAFETY: unsharing the descriptor table is what makes the call unsafe; this does not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace can be made");
}

/// Root of a user namespace with only itself in it cannot become anyone else, and need not: it has
/// no privilege on the machine.
fn can_drop_privilege() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().any(|line| line.split_whitespace().nth(2).unwrap().parse::<u32>().unwrap() > ORDINARY)
}

/// The binary under test: what `USERNET` names, else the release build of this workspace.
fn usernet_binary() -> PathBuf {
    let binary = std::env::var_os("USERNET").map_or_else(|| target().join("release/usernet"), PathBuf::from);
    assert!(binary.exists(), "no {}: cargo build --release --package usernet-cli", binary.display());
    binary
}

/// A program of this package.
fn program(name: &str) -> PathBuf {
    // Tests lie in `deps`, beside which their package's programs are.
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name)
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}
