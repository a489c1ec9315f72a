//! A virtual machine: QEMU without KVM, and in it a shell that the work is done by.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::contender::Lab;
use super::shell::Shell;

pub(super) const QEMU: &str = "qemu-system-x86_64";
/// Makes what the machine boots; the script says what that is.
const BUILD: &str = include_str!("../../../tests/machine/build.sh");

/// The addresses that all networks know a guest by. The MTU stays what it is when nobody says otherwise.
const SET_UP: &str = "\
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad &&
ip address add 10.0.2.15/24 dev eth0 && ip address add fd00::15/64 dev eth0 && ip link set eth0 up &&
ip route add default via 10.0.2.2 &&
until grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.1; done";

/// Where a machine's network card is plugged in.
pub(super) enum Netdev {
    /// QEMU's own network.
    User,
    /// A network behind this socket.
    Stream(PathBuf),
}

/// Makes the kernel and the initramfs in `folder`.
pub(super) fn build(unpacked: &Path, folder: &Path, load: &Path) -> Result<()> {
    ensure!(unpacked.exists(), "no kernel in {}", unpacked.display());
    let output =
        Command::new("sh").args(["-c", BUILD, "build.sh"]).args([unpacked, folder, load]).output()?;
    ensure!(output.status.success(), "no machine: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Starts to boot a machine.
pub(super) fn start(lab: &Lab, netdev: &Netdev, complaints: PathBuf) -> Result<Shell> {
    if let Err(error) = &lab.image {
        anyhow::bail!("{error}");
    }
    let mut command = lab.user(QEMU);
    let arguments = "-accel tcg -machine q35 -cpu max -m 512 -nodefaults -display none -no-reboot";
    command.args(arguments.split(' ')).args(["-serial", "null", "-serial", "stdio"]);
    command.arg("-kernel").arg(lab.folder.join("kernel")).arg("-initrd").arg(lab.folder.join("initramfs"));
    // What the kernel does not know goes to the environment.
    command.args(["-append", "console=ttyS0 quiet panic=-1 LOAD=/bin/usernet-load"]);
    let netdev = match netdev {
        Netdev::User => OsString::from("user,id=net,ipv6-net=fd00::/64"),
        Netdev::Stream(socket) => {
            let mut text = OsString::from("stream,id=net,server=off,addr.type=unix,addr.path=");
            text.push(socket);
            text
        }
    };
    command.arg("-netdev").arg(netdev).args(["-device", "virtio-net-pci,netdev=net"]);
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
