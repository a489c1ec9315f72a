//! `usernet exec`: a command as a guest, in namespaces of its own.
//!
//! Two processes: the outer one has the network (or knows the daemon that does) and lives as long as
//! the command; the inner one, this program started again so that it has a single thread, becomes the
//! command. Between them is a socket:
//!
//! 1. inner: enters its namespaces, says so;
//! 2. outer: maps the users, says so;
//! 3. inner: makes a TAP device, offers it ([`crate::handover`]);
//! 4. outer: plugs it in, answers with the lease;
//! 5. inner: sets up the interface and resolv.conf, and becomes the command.
//!
//! Whichever goes, the other notices: the inner one by the signal that it asks for, the outer one by
//! waiting for it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_route::link::LinkAttribute;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use usernet::link::tap::TapLink;
use usernet::{GuestAddress, GuestConfig, Network};

use crate::args::{ControlPath, ExecArgs, ExecGuestArgs};
use crate::handover::{self, Answer, Offer};
use crate::netlink::Netlink;
use crate::supervise::{exit_code, supervise};
use crate::{control, namespace, sys};

/// What the halves tell each other when a step is done.
const DONE: [u8; 1] = [b'.'];

/// The network that the guest is plugged in to, and what keeps it there.
enum Home {
    Own(Box<Network>),
    Joined(UnixStream),
}

/// The outer half.
pub(crate) fn run(args: &ExecArgs) -> Result<ExitCode> {
    let config = args.network.config_of_one(args.queues)?;
    let hostname = config.hostname.clone();
    // Before any thread: the signal that ends the command comes when the thread that started it ends.
    let (stream, mut child) = start_inner(args)?;

    let home = match &args.join {
        None => Home::Own(Box::new(Network::start(config)?)),
        Some(ControlPath(path)) => Home::Joined(UnixStream::connect(path).with_context(|| {
            format!("no daemon answers at {} (start one with `usernet --control unix:PATH`)", path.display())
        })?),
    };
    if !settle(&stream, &child, &home, hostname)? {
        // It has said why itself.
        return Ok(exit_code(child.wait()?));
    }
    drop(stream);
    let code = supervise(child)?;
    if let Home::Own(network) = home {
        network.shutdown();
    }
    Ok(code)
}

fn start_inner(args: &ExecArgs) -> Result<(UnixStream, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    let shell = [std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    fcntl_setfd(&theirs, FdFlags::empty())?;
    let child = Command::new("/proc/self/exe")
        .arg("exec-guest")
        .arg(format!("--socket={}", theirs.as_raw_fd()))
        .arg(format!("--queues={}", args.queues))
        .arg("--")
        .args(if args.command.is_empty() { &shell[..] } else { &args.command })
        .spawn()
        .context("cannot start this program again")?;
    Ok((ours, child))
}

/// Gives the inner half all that it needs; whether it was still there to take it.
fn settle(mut stream: &UnixStream, child: &Child, home: &Home, hostname: Option<String>) -> Result<bool> {
    if stream.read(&mut [0])? == 0 {
        return Ok(false);
    }
    namespace::map_ids(child.id())?;
    stream.write_all(&DONE)?;
    let Some((offer, queues)) = handover::receive_offer(stream)? else { return Ok(false) };
    let offer = Offer { hostname, ..offer };
    let answer = match home {
        Home::Own(network) => Answer::Welcome(control::plug_in(network.handle(), &offer, queues)?.1),
        Home::Joined(daemon) => {
            let queues: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
            handover::send_offer(daemon, &offer, &queues)?;
            handover::receive_answer(daemon)?.context("the daemon has gone")?
        }
    };
    if let Answer::Refused { error } = answer {
        bail!("the daemon refuses the guest: {error}");
    }
    handover::send_answer(stream, &answer)?;
    Ok(true)
}

/// The inner half. It returns only when it fails, or quietly when the outer half has.
pub(crate) fn guest(args: &ExecGuestArgs) -> Result<ExitCode> {
    let mut stream = UnixStream::from(sys::inherited_fd(args.socket)?);
    let (program, arguments) = args.command.split_first().context("there is no command")?;

    namespace::enter()?;
    // A new user namespace forgets this, so it comes after.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // An outer half that has failed by now has said why.
    let told = stream.write_all(&DONE).and_then(|()| stream.read(&mut [0]));
    if !matches!(told, Ok(1)) {
        return Ok(ExitCode::FAILURE);
    }

    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let offer = Offer { name, mac: handover::random_mac()?, hostname: None };
    let interface = make_tap(&stream, &offer, args.queues)?;
    let Some(Answer::Welcome(lease)) = handover::receive_answer(&stream)? else {
        return Ok(ExitCode::FAILURE);
    };
    configure(&interface, offer.mac, &lease).context("cannot set up the guest's interface")?;
    if let Err(error) = namespace::cover_resolv_conf(&lease) {
        eprintln!("usernet: warning: names will be looked up as on the host: {error:#}");
    }
    if let Err(error) = namespace::allow_ping() {
        eprintln!("usernet: warning: ping may not work in the guest: {error}");
    }

    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!(error).context(format!("cannot run {}", program.display())))
}

/// Makes a TAP device in the current network namespace and sends it to the outer half, which alone
/// keeps it. Returns its name.
fn make_tap(stream: &UnixStream, offer: &Offer, queues: NonZeroU16) -> Result<String> {
    let (links, interface) = TapLink::open_queues("tap0", queues.get().into()).map_err(|error| {
        let way_out = match error.kind() {
            io::ErrorKind::PermissionDenied => " (`sudo chmod 0666 /dev/net/tun` allows it)",
            io::ErrorKind::NotFound => " (`sudo modprobe tun` makes the device)",
            _ => "",
        };
        anyhow!("{error}{way_out}")
    })?;
    let queues: Vec<_> = links.iter().map(|link| link.rx.as_fd()).collect();
    handover::send_offer(stream, offer, &queues)?;
    Ok(interface)
}

fn configure(interface: &str, mac: [u8; 6], lease: &GuestConfig) -> io::Result<()> {
    let netlink = Netlink::open()?;
    netlink.set_up(netlink.index_of("lo")?, Vec::new())?;
    let tap = netlink.index_of(interface)?;
    leave_ipv6_to_us(interface, lease.ipv6.is_some());
    let attributes = vec![LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(lease.mtu.into())];
    netlink.set_up(tap, attributes)?;
    if let Some(at) = lease.ipv4 {
        place(&netlink, tap, at)?;
    }
    match lease.ipv6.map_or(Ok(()), |at| place(&netlink, tap, at)) {
        // Not every kernel has IPv6.
        Err(error) if lease.ipv4.is_some() => {
            eprintln!("usernet: warning: the guest has no IPv6 (`--ipv4-only` does without): {error}");
            Ok(())
        }
        placed => placed,
    }
}

fn place<A: Into<IpAddr>>(netlink: &Netlink, interface: u32, at: GuestAddress<A>) -> io::Result<()> {
    netlink.add_address(interface, at.address.into(), at.prefix_len)?;
    at.gateway.map_or(Ok(()), |gateway| netlink.add_default_route(gateway.into()))
}

/// Keeps the kernel from making the interface addresses and routes beside those of the lease, and from
/// looking for others that have its link-local address.
fn leave_ipv6_to_us(interface: &str, on: bool) {
    let settings = [("disable_ipv6", if on { "0" } else { "1" }), ("accept_ra", "0"), ("accept_dad", "0")];
    for (name, value) in settings {
        // Where it cannot be had, all that the lease says holds still.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value);
    }
}
