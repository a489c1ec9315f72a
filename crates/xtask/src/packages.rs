//! What the tests need from the system: Debian packages, and a kernel for the QEMU guests.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::test::{Suite, status};

/// A program that tests run, and the package that has it.
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
}

pub(crate) const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

const NET: &[Program] = &[
    program("curl", "curl"),
    program("dhcpcd", "dhcpcd-base"),
    program("dig", "dnsutils"),
    program("ip", "iproute2"),
    program("iperf3", "iperf3"),
    program("nmap", "nmap"),
    program("ping", "iputils-ping"),
    program("rdisc6", "ndisc6"),
    program("socat", "socat"),
    program("tracepath", "iputils-tracepath"),
    program("traceroute", "traceroute"),
    program("tshark", "tshark"),
    program("udhcpc", "udhcpc"),
];

const QEMU: &[Program] = &[
    program("busybox", "busybox-static"),
    program("ip", "iproute2"),
    program("qemu-system-x86_64", "qemu-system-x86"),
];

const UML: &[Program] = &[
    program("busybox", "busybox-static"),
    program("ip", "iproute2"),
    program("linux.uml", "user-mode-linux"),
];

/// Where the kernel of the QEMU guests is unpacked; it is not installed.
pub(crate) const KERNEL: &str = "target/lab/kernel";

/// The package that always depends on the newest kernel for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Makes sure that what the suites need is there.
pub(crate) fn provide(suites: &[Suite]) -> Result<()> {
    let mut wanted = Vec::new();
    if suites.contains(&Suite::Net) {
        wanted.extend(NET);
    }
    if suites.contains(&Suite::Qemu) {
        wanted.extend(QEMU);
    }
    if suites.contains(&Suite::Uml) {
        wanted.extend(UML);
    }
    let mut missing: Vec<_> = wanted.iter().filter(|p| !on_path(p.name)).map(|p| p.package).collect();
    missing.sort_unstable();
    missing.dedup();
    let kernel_missing = suites.contains(&Suite::Qemu) && !Path::new(KERNEL).join("boot").exists();

    // A kernel that is in an old list may not be on the mirror any more.
    let stale = kernel_missing && (rustix::process::geteuid().is_root() || newest_kernel().is_err());
    if !missing.is_empty() || stale {
        install(&missing)?;
    }
    if kernel_missing {
        unpack_kernel()?;
    }
    if suites.contains(&Suite::Net) {
        open_tun()?;
    }
    Ok(())
}

/// Installs what is missing of `programs`, fetches the kernel if one is wanted, and opens the TAP device,
/// if it can. That it cannot is no error: who then is missing is named by whoever runs it.
pub(crate) fn offer(programs: &[Program], kernel: bool) {
    let missing: Vec<_> = programs.iter().filter(|p| !on_path(p.name)).map(|p| p.package).collect();
    let kernel_missing = kernel && !Path::new(KERNEL).join("boot").exists();
    let installed = if missing.is_empty() && !kernel_missing { Ok(()) } else { install(&missing) };
    let unpacked = if kernel_missing { unpack_kernel() } else { Ok(()) };
    for error in [installed, unpacked, open_tun()].into_iter().filter_map(Result::err) {
        eprintln!("warning: {error:#}");
    }
}

fn on_path(program: &str) -> bool {
    // An ordinary user's PATH lacks the sbin folders, the programs in them still run.
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn install(packages: &[&str]) -> Result<()> {
    let install = ["install", "--yes", "--no-install-recommends"];
    if !rustix::process::geteuid().is_root() {
        bail!(
            "programs are missing that are needed; run this line, then this task again:\n  \
             sudo sh -c 'apt-get update && apt-get {} {}'",
            install.join(" "),
            packages.join(" ")
        );
    }
    status(Command::new("apt-get").arg("update").arg("--quiet"))?;
    if packages.is_empty() {
        return Ok(());
    }
    status(
        Command::new("apt-get")
            .arg("--quiet")
            .args(install)
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Fetches the kernel package and unpacks it under `target`.
fn unpack_kernel() -> Result<()> {
    let package = newest_kernel()?;
    let parent = Path::new(KERNEL).parent().expect("the kernel has a folder above it");
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    status(Command::new("apt-get").args(["download", &package]).current_dir(parent))?;

    let archive = fs::read_dir(parent)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get left no package in {}", parent.display()))?;
    // Unpacked beside and renamed, so that one that was interrupted is not taken for a whole one.
    let unpacked = parent.join("kernel.new");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    status(Command::new("dpkg").arg("-x").args([&archive, &unpacked]))?;
    fs::rename(&unpacked, KERNEL)?;
    fs::remove_file(&archive)?;
    Ok(())
}

fn newest_kernel() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", KERNEL_PACKAGE])
        .output()
        .context("cannot run apt-cache: the kernel of the QEMU guests comes from a Debian package")?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let package = output.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(package.with_context(|| format!("apt knows no {KERNEL_PACKAGE}"))?.to_owned())
}

/// The daemon runs as an ordinary user in the tests, who must be able to make a TAP device in a
/// namespace of its own. Distributions ship the device open to all.
fn open_tun() -> Result<()> {
    let device = Path::new("/dev/net/tun");
    let open = || fs::OpenOptions::new().read(true).write(true).open(device).is_ok();
    if rustix::process::geteuid().is_root() {
        return status(Command::new("chmod").arg("0666").arg(device));
    }
    ensure!(
        open(),
        "{} cannot be opened; run this line, then the tests again:\n  sudo sh -c 'modprobe tun; chmod 0666 {0}'",
        device.display()
    );
    Ok(())
}
