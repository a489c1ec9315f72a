//! A machine, QEMU without KVM or User Mode Linux, and in it a shell that the work is done by.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::lab::{Lab, Servers};
use super::shell::Shell;
use crate::machine::{Card, Netdev, qemu, uml};

/// Where the programs of [`Lab::image`] find the one that does the work.
const ENVIRONMENT: &str = "LOAD=/bin/usernet-load";

/// The addresses that all networks know a guest by. The MTU stays what it is when nobody says otherwise.
const SET_UP: &str = "\
[ ! -e /sys/class/net/vec0 ] || ip link set vec0 name eth0
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad &&
ip address add 10.0.2.15/24 dev eth0 && ip address add fd00::15/64 dev eth0 && ip link set eth0 up &&
ip route add default via 10.0.2.2 &&
until grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.1; done";

/// Servers that end with their parent, which goes on for them.
const SERVE: &str = "\
for address in 127.0.0.1 ::1; do
    ($LOAD serve --address $address; true) >/tmp/$address </dev/null 2>&1 &
    until [ -s /tmp/$address ]; do sleep 0.1; done
    cat /tmp/$address
done";

/// Starts to boot a QEMU machine with so many processors, and pairs of queues.
pub(super) fn start(lab: &Lab, netdev: Netdev<'_>, processors: u16, complaints: PathBuf) -> Result<Shell> {
    lab.image.as_ref().map_err(|error| anyhow!("{error}"))?;
    let line = qemu(&lab.folder, &[ENVIRONMENT]);
    let (program, arguments) = line.split_first().context("a command line has a program")?;
    let mut command = lab.user(program);
    command.args(arguments).arg("-no-reboot");
    if processors == 1 {
        command.args(netdev.card(""));
    } else {
        command.args(netdev.card(",mq=on")).args(["-smp", &processors.to_string()]);
        command.args(["-set", &format!("netdev.net.queues={processors}")]);
    }
    Shell::start(&mut command, complaints)
}

/// The command line of a User Mode Linux machine.
pub(super) fn uml_line(lab: &Lab, card: Card<'_>) -> Result<Vec<OsString>> {
    let image = lab.uml_image.as_ref().map_err(|error| anyhow!("{error}"))?;
    Ok(uml(image, card, &[ENVIRONMENT]))
}

/// Waits until a machine has booted, and sets up its interface. One that has no `servers` to reach by that
/// gets some of its own.
pub(super) fn set_up(shell: &mut Shell, servers: &mut Vec<Servers>, patience: Duration) -> Result<()> {
    shell.wait_for_console(patience)?;
    if servers.is_empty() {
        let lines = shell.run(SERVE, patience)?;
        *servers =
            lines.lines().filter(|line| !line.is_empty()).map(Servers::parse).collect::<Result<_>>()?;
    } else {
        shell.run(SET_UP, patience)?;
    }
    Ok(())
}

/// Waits until someone listens on a Unix socket. To connect would be to be its guest.
pub(super) fn wait_for_listener(socket: &Path, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let end = format!(" {}", socket.display());
    loop {
        let sockets = fs::read_to_string("/proc/net/unix").context("no list of sockets")?;
        // The fourth field has the flag that the socket accepts connections.
        if sockets.lines().any(|line| line.ends_with(&end) && line.split(' ').nth(3) == Some("00010000")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "nobody listens on {}", socket.display());
        thread::sleep(Duration::from_millis(10));
    }
}
