//! `usernet run`: QEMU with a network in this process.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use rustix::io::{FdFlags, fcntl_setfd};
use tracing::warn;
use usernet::Network;
use usernet::link::stream::StreamLink;

use crate::Usage;
use crate::args::RunArgs;
use crate::guests::{Speaks, welcome};
use crate::handover::random_mac;
use crate::listen::Listener;
use crate::qemu::{Backend, Card};
use crate::supervise::supervise;

/// The status of a command that SIGSEGV has ended, as shells have it.
const SEGMENTATION_FAULT: u8 = 128 + 11;

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let (program, rest) =
        args.command.split_first().ok_or_else(|| Usage("name the QEMU command to run".into()))?;
    let config = args.config()?;
    let memory = args.vhost_user.then(|| memory(rest)).transpose()?;
    let (mtu, mac) = (config.mtu, Some(random_mac()?));

    let network = Network::start(config)?;
    let handle = network.handle();
    let name = program.to_string_lossy().into_owned();
    // What QEMU inherits is its alone, so that the link ends with it.
    let (backend, qemus) = if let Some(memory) = memory {
        let (listener, door) = Listener::unnamed()?;
        let _runtime = handle.runtime().enter();
        let speaks = Speaks::VhostUser(args.queues);
        tokio::spawn(welcome(listener.accept()?, speaks, Some(name), handle.clone()));
        // A connected socket would be simpler, but QEMU takes it for one that passes no descriptors.
        let socket = format!("path=/proc/self/fd/{}", door.as_raw_fd());
        (Backend::VhostUser { socket, memory, queues: args.queues }, door)
    } else {
        let (ours, qemus) = UnixStream::pair()?;
        handle.attach(StreamLink::new(ours.into())?, &name)?;
        (Backend::Stream(format!("addr.type=fd,addr.str={}", qemus.as_raw_fd())), qemus.into())
    };
    let card = Card { id: "usernet0", backend, driver: driver(program, rest), mac, mtu };

    fcntl_setfd(&qemus, FdFlags::empty())?;
    let child = Command::new(program)
        .args(rest)
        .args(card.arguments())
        .spawn()
        .map_err(|error| not_started(program, error))?;
    drop(qemus);
    let code = supervise(child)?;
    network.shutdown();
    if args.vhost_user && code == ExitCode::from(SEGMENTATION_FAULT) {
        warn!(
            "QEMU crashed. Without KVM, QEMU 7.2 does so with vhost-user: add `-global virtio-net-pci.vectors=0`"
        );
    }
    Ok(code)
}

/// The virtio-net device that the machine has a bus for.
fn driver(program: &OsStr, arguments: &[OsString]) -> &'static str {
    let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let microvm = machine(arguments).any(|part| part.trim_start_matches("type=") == "microvm");
    if program.ends_with("s390x") {
        "virtio-net-ccw"
    } else if microvm || program.ends_with("m68k") {
        "virtio-net-device"
    } else {
        "virtio-net-pci"
    }
}

/// The size of the machine's memory, as QEMU writes one.
///
/// # Errors
/// The memory is laid out in ways that adding a shared backend for all of it would not fit.
fn memory(arguments: &[OsString]) -> Result<String, Usage> {
    let mut size = "128M".to_owned();
    let mut other =
        ["numa", "mem-path"].into_iter().find(|option| values(arguments, option).next().is_some());
    if machine(arguments).any(|part| part.starts_with("memory-backend=")) {
        other = Some("machine memory-backend=");
    }
    for value in values(arguments, "m") {
        for (at, part) in value.split(',').enumerate() {
            match part.split_once('=') {
                Some(("size", given)) => size = given.to_owned(),
                None if at == 0 => size = part.to_owned(),
                Some(("slots" | "maxmem", _)) => other = Some("m slots=,maxmem="),
                // What else is wrong there, QEMU says.
                _ => {}
            }
        }
    }
    if let Some(option) = other {
        return Err(Usage(format!(
            "--vhost-user makes the machine's memory one shared piece, and -{option} wants it otherwise: leave one \
             of the two out, or start a daemon (usernet --vhost-user PATH) and QEMU with shared memory of your own"
        )));
    }
    // Without a unit, -m is in MiB and a backend's size in bytes.
    Ok(if size.ends_with(|last: char| last.is_ascii_digit()) { size + "M" } else { size })
}

/// The properties of the machine.
fn machine(arguments: &[OsString]) -> impl Iterator<Item = String> {
    let given = values(arguments, "M").chain(values(arguments, "machine"));
    given.flat_map(|value| value.split(',').map(str::to_owned).collect::<Vec<_>>())
}

/// The values that an option of QEMU's is given. It may begin with two dashes.
fn values<'a>(arguments: &'a [OsString], option: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    arguments.windows(2).filter_map(move |pair| {
        let [name, value] = pair else { return None };
        let name = name.to_str()?.strip_prefix('-')?;
        (name.strip_prefix('-').unwrap_or(name) == option).then(|| value.to_string_lossy())
    })
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

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_device_fits_the_machine() {
        for (line, expected) in [
            ("qemu-system-x86_64 -m 512", "virtio-net-pci"),
            ("/usr/bin/qemu-system-aarch64 -M virt", "virtio-net-pci"),
            ("qemu-system-s390x", "virtio-net-ccw"),
            ("qemu-system-x86_64 -M microvm,pic=off", "virtio-net-device"),
            ("qemu-system-x86_64 -machine type=microvm", "virtio-net-device"),
            ("qemu-system-x86_64 --machine accel=tcg,type=microvm", "virtio-net-device"),
            ("qemu-system-x86_64 -name microvm", "virtio-net-pci"),
        ] {
            let words = words(line);
            assert_eq!(driver(&words[0], &words[1..]), expected, "{line}");
        }
    }

    #[test]
    fn shared_memory_is_as_large_as_the_machines() {
        for (line, expected) in [
            ("-M q35 -smp 2", "128M"),
            ("-m 512", "512M"),
            ("-m 1G -cpu max", "1G"),
            ("--m 1.5G", "1.5G"),
            ("-m size=2048", "2048M"),
            ("-m 1G -m 3072m", "3072m"),
            ("-machine q35,accel=kvm -m 4T", "4T"),
        ] {
            assert_eq!(memory(&words(line)).map_err(|Usage(why)| why), Ok(expected.to_owned()), "{line}");
        }
    }

    #[test]
    fn memory_that_is_laid_out_already_is_refused() {
        for (line, named) in [
            ("-m 1G,slots=2,maxmem=4G", "-m slots=,maxmem="),
            ("-m size=1G,maxmem=4G", "-m slots=,maxmem="),
            ("-M q35,memory-backend=mine", "-machine memory-backend="),
            ("-numa node,memdev=mine", "-numa"),
            ("-mem-path /dev/hugepages", "-mem-path"),
        ] {
            let Usage(why) = memory(&words(line)).expect_err(line);
            assert!(why.contains(&format!("{named} wants it otherwise: leave one")), "{line}: {why}");
        }
    }

    #[test]
    fn a_qemu_that_is_not_there_is_named() {
        let why = not_started(OsStr::new("qemu-system-vax"), io::ErrorKind::NotFound.into()).to_string();
        assert!(why.contains("qemu-system-vax") && why.contains("install"), "{why}");
    }
}
