//! `usernet run`: QEMU with a network in this process.

use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use rustix::io::{FdFlags, fcntl_setfd};
use usernet::Network;
use usernet::link::stream::StreamLink;

use crate::Usage;
use crate::args::RunArgs;
use crate::handover::random_mac;
use crate::supervise::supervise;

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let (program, rest) =
        args.command.split_first().ok_or_else(|| Usage("name the QEMU command to run".into()))?;
    let config = args.network.config_of_one(NonZeroU16::MIN)?;
    let device = device(program, rest, random_mac()?, config.mtu);

    let network = Network::start(config)?;
    let (ours, qemus) = UnixStream::pair()?;
    network.handle().attach(StreamLink::new(ours.into())?, &program.to_string_lossy())?;

    fcntl_setfd(&qemus, FdFlags::empty())?;
    let child = Command::new(program)
        .args(rest)
        .args(["-netdev", &netdev(qemus.as_raw_fd()), "-device", &device])
        .spawn()
        .map_err(|error| not_started(program, error))?;
    // The guest's end of the link is QEMU's alone, so that the link ends with it.
    drop(qemus);
    let code = supervise(child)?;
    network.shutdown();
    Ok(code)
}

fn netdev(descriptor: RawFd) -> String {
    format!("stream,id=usernet0,server=off,addr.type=fd,addr.str={descriptor}")
}

/// The virtio-net device that the machine has a bus for.
fn device(program: &OsStr, arguments: &[OsString], mac: [u8; 6], mtu: u16) -> String {
    let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let microvm = arguments.windows(2).any(|pair| {
        let [option, value] = pair else { return false };
        let value = value.to_string_lossy();
        ["-M", "-machine", "--machine"].iter().any(|name| option == name)
            && value.split(',').any(|part| part.trim_start_matches("type=") == "microvm")
    });
    let driver = if program.ends_with("s390x") {
        "virtio-net-ccw"
    } else if microvm || program.ends_with("m68k") {
        "virtio-net-device"
    } else {
        "virtio-net-pci"
    };
    let [a, b, c, d, e, f] = mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let host_mtu = if mtu == 1500 { String::new() } else { format!(",host_mtu={mtu}") };
    format!("{driver},netdev=usernet0,mac={mac}{host_mtu}")
}

fn not_started(program: &OsStr, error: io::Error) -> anyhow::Error {
    let program = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        anyhow!(
            "cannot find {program}: install QEMU 7.2 or later (on Debian: sudo apt install qemu-system), or give its path"
        )
    } else {
        anyhow!(error).context(format!("cannot run {program}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_fits_the_machine() {
        let device = |line: &str, mtu| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            device(&words[0], &words[1..], [0x52, 0x54, 0, 0xa, 0xb, 0xc], mtu)
        };
        let pci = "virtio-net-pci,netdev=usernet0,mac=52:54:00:0a:0b:0c";
        assert_eq!(device("qemu-system-x86_64 -m 512", 1500), pci);
        assert_eq!(device("/usr/bin/qemu-system-aarch64 -M virt", 1500), pci);
        assert_eq!(device("qemu-system-x86_64", 9000), format!("{pci},host_mtu=9000"));
        assert!(device("qemu-system-s390x", 1500).starts_with("virtio-net-ccw,"));
        assert!(device("qemu-system-x86_64 -M microvm,pic=off", 1500).starts_with("virtio-net-device,"));
        assert!(device("qemu-system-x86_64 -machine type=microvm", 1500).starts_with("virtio-net-device,"));
        assert!(device("qemu-system-x86_64 -name microvm", 1500).starts_with("virtio-net-pci,"));
    }

    #[test]
    fn a_qemu_that_is_not_there_is_named() {
        let why = not_started(OsStr::new("qemu-system-vax"), io::ErrorKind::NotFound.into()).to_string();
        assert!(why.contains("qemu-system-vax") && why.contains("install"), "{why}");
    }
}
