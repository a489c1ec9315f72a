//! Another machine: a network namespace that the host may be linked to.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Process, finish};
use crate::wait::SOON;
use crate::{As, World, ip};

/// A machine that is there until it is dropped.
pub struct Node(Process);

impl Node {
    /// A machine without links.
    pub fn new(world: &World) -> Self {
        Self::with(world, "true")
    }

    /// A machine without links, on which this shell script has been run.
    pub fn with(world: &World, settings: &str) -> Self {
        let mut command = world.command(As::Root, "unshare");
        let script = format!("{settings}; ip link set lo up; echo up; exec sleep 1000");
        command.args(["--net", "sh", "-c", &script]);
        let mut process = Process::spawn(command);
        process.line_with("up");
        Self(process)
    }

    /// The process whose network namespace it is.
    pub fn pid(&self) -> Pid {
        self.0.pid()
    }

    /// Links it to the host; the device has this name at either end.
    pub fn link(&self, device: &str) {
        ip(&format!("link add {device} type veth peer name {device} netns {}", self.pid()));
        ip(&format!("link set {device} up"));
        self.ip(&format!("link set {device} up"));
    }

    /// Runs `ip` on it.
    ///
    /// # Panics
    /// It fails.
    pub fn ip(&self, arguments: &str) {
        let mut command = self.command("ip");
        command.args(arguments.split(' '));
        finish(command, SOON).ok();
    }

    /// A command that runs on it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid().to_string(), program]);
        command
    }

    /// What `run` returns, which runs on it with all threads that it starts.
    pub fn run<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        let moved = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        };
        thread::spawn(moved).join().unwrap()
    }
}
