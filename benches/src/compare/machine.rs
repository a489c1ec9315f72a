//! A virtual machine: QEMU without KVM, and in it a shell that the work is done by.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::contender::Lab;
use super::shell::Shell;
use crate::machine::{Netdev, qemu};

/// Where the programs of [`Lab::image`] find the one that does the work.
const ENVIRONMENT: &[&str] = &["LOAD=/bin/usernet-load"];

/// The addresses that all networks know a guest by. The MTU stays what it is when nobody says otherwise.
const SET_UP: &str = "\
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad &&
ip address add 10.0.2.15/24 dev eth0 && ip address add fd00::15/64 dev eth0 && ip link set eth0 up &&
ip route add default via 10.0.2.2 &&
until grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.1; done";

/// Starts to boot a machine.
pub(super) fn start(lab: &Lab, netdev: Netdev<'_>, complaints: PathBuf) -> Result<Shell> {
    if let Err(error) = &lab.image {
        anyhow::bail!("{error}");
    }
    let line = qemu(&lab.folder, ENVIRONMENT);
    let (program, arguments) = line.split_first().context("a command line has a program")?;
    let mut command = lab.user(program);
    command.args(arguments).arg("-no-reboot").args(netdev.card(""));
    Shell::start(&mut command, complaints)
}

/// Waits until a machine has booted, and sets up its interface.
pub(super) fn set_up(shell: &mut Shell, patience: Duration) -> Result<()> {
    shell.wait_for_console(patience)?;
    shell.run(SET_UP, patience)?;
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
