//! The namespaces that a guest of `exec` lives in: users, networks, mounts.
//!
//! Two processes take part. The inner one leaves its namespaces and, in the new ones, is root; the
//! outer one says who that root is outside, which the kernel lets only somebody outside do where it is
//! more than one user.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount,
};
use usernet::GuestConfig;

use crate::sys;

/// Leaves the namespaces that this process was born in. Without [`map_ids`] from outside, the new
/// ones know no user.
///
/// # Errors
/// The system does not let users make namespaces; the message says what would.
pub(crate) fn enter() -> Result<()> {
    sys::unshare().map_err(|error| {
        anyhow!(error).context(format!("cannot make a user and network namespace ({})", namespace_way_out()))
    })?;
    // Mounts of the host still come in; ours do not go out.
    let inward = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", inward).context("cannot make the mounts private")
}

/// What stands in the way of namespaces, and how to move it.
fn namespace_way_out() -> String {
    // Each refuses them in its own way; the first that does is named.
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ]
    .into_iter()
    .find(|(file, refusing, _)| {
        fs::read_to_string(Path::new("/proc/sys").join(file)).is_ok_and(|value| value.trim() == *refusing)
    })
    .map_or_else(
        || "inside a container, it must be started with the right to make user namespaces".to_owned(),
        |(_, _, setting)| format!("`sudo sysctl -w {setting}` allows it"),
    )
}

/// Says who the users of process `pid`, which has entered a new user namespace, are out here. Root
/// keeps every user there is; anybody else becomes root and is alone.
///
/// # Errors
/// The system does not take it.
pub(crate) fn map_ids(pid: u32) -> Result<()> {
    let folder = Path::new("/proc").join(pid.to_string());
    let uid = rustix::process::geteuid();
    let gid = rustix::process::getegid();
    let write = |file: &str, text: String| {
        fs::write(folder.join(file), text).with_context(|| {
            format!("cannot make you root in the new user namespace ({file}; {})", namespace_way_out())
        })
    };
    if uid.is_root() {
        write("uid_map", same_ids("/proc/self/uid_map")?)?;
        write("gid_map", same_ids("/proc/self/gid_map")?)
    } else {
        write("uid_map", format!("0 {uid} 1\n"))?;
        // Else a process could leave a group that is there to deny it something.
        write("setgroups", "deny\n".to_owned())?;
        write("gid_map", format!("0 {gid} 1\n"))
    }
}

/// A map under which each number of the current namespace stays what it is.
fn same_ids(current: &str) -> Result<String> {
    let map = fs::read_to_string(current).with_context(|| format!("cannot read {current}"))?;
    Ok(map.lines().filter_map(same_range).collect())
}

/// `inside outside count`, with the inside twice.
fn same_range(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (inside, count) = (words.next()?, words.nth(1)?);
    Some(format!("{inside} {inside} {count}\n"))
}

/// Lets every command in the current network namespace ping without privilege.
pub(crate) fn allow_ping() -> io::Result<()> {
    // Root's group is the one that surely exists in the user namespace.
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0\n")
}

/// Puts a resolv.conf in place that only the current mount namespace sees.
///
/// # Errors
/// There is no `/etc/resolv.conf` to cover, or the system does not let it be covered.
pub(crate) fn cover_resolv_conf(guest: &GuestConfig) -> Result<()> {
    // The file lies on a file system of its own, which needs a place for a moment. /tmp is there on
    // every system, and this process is alone in its mount namespace.
    mount("usernet", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")
        .context("cannot mount a place for resolv.conf")?;
    let covered = write_and_cover(guest);
    unmount("/tmp", UnmountFlags::DETACH)?;
    covered.map_err(|error| match error {
        Errno::NOENT => {
            anyhow!("there is no /etc/resolv.conf to cover (`sudo touch /etc/resolv.conf` makes one)")
        }
        error => anyhow!(io::Error::from(error)).context("cannot cover /etc/resolv.conf"),
    })
}

fn write_and_cover(guest: &GuestConfig) -> rustix::io::Result<()> {
    const FILE: &str = "/tmp/resolv.conf";
    fs::write(FILE, resolv_conf(guest)).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // A bind mount that, unlike mount(2), covers a symbolic link itself: /etc/resolv.conf is often
    // one, and its target need not exist.
    let file = open_tree(CWD, FILE, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    move_mount(file, "", CWD, "/etc/resolv.conf", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn resolv_conf(guest: &GuestConfig) -> String {
    let search = match guest.search.as_slice() {
        [] => String::new(),
        domains => format!("search {}\n", domains.join(" ")),
    };
    let servers: String = guest.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    servers + &search
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_what_the_lease_says() {
        let mut guest = GuestConfig {
            ipv4: None,
            ipv6: None,
            dns: vec!["10.0.2.3".parse().unwrap()],
            mtu: 1500,
            search: Vec::new(),
        };
        assert_eq!(resolv_conf(&guest), "nameserver 10.0.2.3\n");
        guest.search = vec!["a.example".into(), "b.example".into()];
        guest.dns.push("fd00::3".parse().unwrap());
        let both = "nameserver 10.0.2.3\nnameserver fd00::3\nsearch a.example b.example\n";
        assert_eq!(resolv_conf(&guest), both);
    }

    #[test]
    fn root_keeps_all_users() {
        assert_eq!(same_range("         0     100000      65536"), Some("0 0 65536\n".into()));
        assert_eq!(same_range("1 5"), None);
    }
}
