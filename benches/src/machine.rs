//! Real machines that are guests: what they boot, and the commands that start them.
//!
//! A machine has busybox, some programs of the caller's, and on its standard input and output a shell that
//! takes one script at a time (`machine/build.sh` says how). There are two kinds:
//!
//! - QEMU without KVM, which has every kind of network card and an emulated processor, and
//! - User Mode Linux, Debian's package of it: a kernel that is a process of the host's and runs at the host's
//!   speed, whose only card of interest is a vhost-user one.
//!
//! The tests and the comparison share this; how they speak with the shell is theirs.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// The program that is a QEMU machine.
pub const QEMU: &str = "qemu-system-x86_64";
/// The program that is a User Mode Linux machine.
pub const UML: &str = "linux.uml";

/// Where User Mode Linux has its modules.
const UML_MODULES: &str = "/usr/lib/uml/modules";
/// Makes what a machine boots; the script says what that is.
const BUILD: &str = include_str!("../machine/build.sh");

/// Makes what a QEMU machine boots in `folder`, with `programs` in it: the kernel is that of an unpacked
/// Debian package.
///
/// # Errors
/// There is no such package, or the script complains.
pub fn build_qemu(unpacked: &Path, folder: &Path, programs: &[&Path]) -> Result<()> {
    ensure!(unpacked.exists(), "no kernel in {}: cargo xtask test qemu fetches it", unpacked.display());
    build(unpacked, folder, programs)
}

/// Makes what a User Mode Linux machine boots in `folder`, with `programs` in it.
///
/// # Errors
/// It is not installed, or the script complains.
pub fn build_uml(folder: &Path, programs: &[&Path]) -> Result<()> {
    let modules = Path::new(UML_MODULES);
    ensure!(modules.exists(), "no {UML_MODULES}: Debian has it in the package user-mode-linux");
    build(modules, folder, programs)
}

fn build(kernel: &Path, folder: &Path, programs: &[&Path]) -> Result<()> {
    let mut command = Command::new("sh");
    let output = command.args(["-c", BUILD, "build.sh"]).args([kernel, folder]).args(programs).output()?;
    ensure!(output.status.success(), "no machine: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The command line of a QEMU machine that boots what is in `folder`, all but its network card. What its
/// kernel says goes to `kernel.log` in the current folder. `environment` is words like `NAME=VALUE`, for
/// those that run in the machine.
pub fn qemu(folder: &Path, environment: &[&str]) -> Vec<OsString> {
    let arguments = "-accel tcg -machine q35 -cpu max -m 512M -nodefaults -display none \
                     -action panic=exit-failure -serial file:kernel.log -serial stdio";
    let mut line: Vec<OsString> = vec![QEMU.into()];
    line.extend(arguments.split(' ').map(OsString::from));
    for (option, file) in [("-kernel", "kernel"), ("-initrd", "initramfs")] {
        line.extend([option.into(), folder.join(file).into()]);
    }
    let append = ["console=ttyS0 quiet panic=-1", &environment.join(" ")].join(" ");
    line.extend(["-append".into(), append.into()]);
    line
}

/// Where the network card of a QEMU machine is plugged in.
#[derive(Clone, Copy, Debug)]
pub enum Netdev<'a> {
    /// QEMU's own network, with the IPv6 prefix of ours.
    User,
    /// A network that listens for streams of frames.
    Stream(&'a Path),
    /// A network that listens for front ends of vhost-user.
    VhostUser(&'a Path),
}

impl Netdev<'_> {
    /// The arguments that give a machine of [`qemu`] its card. `properties` are more of the card, each
    /// like `,mac=52:54:00:12:34:56`.
    pub fn card(self, properties: &str) -> Vec<String> {
        let mut device = format!("virtio-net-pci,netdev=net{properties}");
        let arguments = match self {
            Self::User => vec!["-netdev".to_owned(), "user,id=net,ipv6-net=fd00::/64".to_owned()],
            Self::Stream(socket) => {
                let path = socket.display();
                let netdev = format!("stream,id=net,server=off,addr.type=unix,addr.path={path}");
                vec!["-netdev".to_owned(), netdev]
            }
            Self::VhostUser(socket) => {
                // Without KVM, QEMU 7.2 crashes where such a card has MSI-X.
                device += ",vectors=0";
                let memory = "-object memory-backend-memfd,id=memory,share=on,size=512M \
                              -numa node,memdev=memory -netdev vhost-user,id=net,chardev=net -chardev";
                let chardev = format!("socket,id=net,path={}", socket.display());
                memory.split(' ').map(str::to_owned).chain([chardev]).collect()
            }
        };
        arguments.into_iter().chain(["-device".to_owned(), device]).collect()
    }
}

/// The network card of a User Mode Linux machine.
#[derive(Clone, Copy, Debug)]
pub enum Card<'a> {
    /// It has none.
    None,
    /// It is plugged in to a network that listens for front ends of vhost-user.
    VhostUser(&'a Path),
    /// It is the other end of this TAP device, with segmentation offload, has this MTU, and is called `vec0`.
    Tap(&'a str, u16),
}

/// The command line of a User Mode Linux machine that boots what is in `folder`, and has a card. What its
/// kernel says goes to standard error. `environment` is words like `NAME=VALUE`, for those that run in the
/// machine; `MAC` is the card's address.
///
/// It is several processes, and those that stand for the machine's own would outlive the first. So they have
/// a PID namespace, which ends with the process that this starts. The shell is its first process: User Mode
/// Linux could not be ended there by the signals that it sends itself.
pub fn uml(folder: &Path, card: Card<'_>, environment: &[&str]) -> Vec<OsString> {
    let around = "unshare --user --map-current-user --pid --fork --kill-child --";
    let mut line: Vec<OsString> = around.split(' ').map(OsString::from).collect();
    line.extend(["sh".into(), "-c".into(), r#""$@"; exit $?"#.into(), "sh".into(), UML.into()]);
    // It measures several ways to compute RAID checksums for most of a second, and keeps sockets and such
    // in `uml_dir`.
    let arguments = "mem=512M con=null con0=null,fd:2 ssl1=fd:0,fd:1 quiet panic=1 \
                     initcall_blacklist=raid6_select_algo uml_dir=uml";
    line.extend(arguments.split(' ').map(OsString::from));
    line.push(format!("initrd={}", folder.join("initramfs").display()).into());
    match card {
        Card::None => {}
        Card::VhostUser(socket) => line.push(format!("virtio_uml.device={}:1", socket.display()).into()),
        Card::Tap(device, mtu) => {
            line.push(format!("vec0:transport=tap,ifname={device},depth=128,gro=1,mtu={mtu}").into());
        }
    }
    line.extend(environment.iter().map(OsString::from));
    line
}
