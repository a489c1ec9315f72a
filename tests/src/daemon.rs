//! The `usernet` daemon of a test.

use std::io::{Read, pipe};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use crate::process::{Outcome, Process, terminate};
use crate::wait::{SOON, readable};
use crate::{As, World, eventually};

/// A daemon that runs as an ordinary user and listens for guests on a stream socket.
pub struct Daemon<'w> {
    world: &'w World,
    /// The program.
    pub process: Process,
}

impl<'w> Daemon<'w> {
    /// Starts a daemon with these options beside where it listens, and waits until it is ready.
    ///
    /// # Panics
    /// It ends instead.
    pub fn start(world: &'w World, options: &[&str]) -> Self {
        let (mut ready, writer) = pipe().unwrap();
        // The pipe arrives as standard input, the one descriptor that a child is sure to inherit.
        let mut command = world.command(As::User, "sh");
        command.args(["-c", r#"exec "$0" "$@" 3>&0 </dev/null"#]).arg(world.usernet());
        let listen = format!("unix:{}", Self::socket_of(world).display());
        let control = format!("unix:{}", Self::control_of(world).display());
        command.args(["--listen", &listen, "--control", &control]);
        command.args(["--ready-fd", "3"]).args(options);
        let process = Process::spawn_with(command, writer);
        let told = readable(&ready, Instant::now() + SOON) && ready.read(&mut [0]).unwrap() == 1;
        assert!(told, "the daemon does not get ready: {}{}", process.stdout(), process.stderr());
        Self { world, process }
    }

    /// Where guests plug in.
    pub fn socket(&self) -> PathBuf {
        Self::socket_of(self.world)
    }

    /// Where it is controlled.
    pub fn control(&self) -> PathBuf {
        Self::control_of(self.world)
    }

    /// Runs a shell script in a namespace guest of this daemon.
    pub fn exec(&self, script: &str) -> Outcome {
        self.world.exec(&["--join", &self.control().display().to_string()], script)
    }

    /// Starts a shell script in a namespace guest of this daemon.
    pub fn spawn(&self, script: &str) -> Process {
        Process::spawn(self.world.exec_command(&["--join", &self.control().display().to_string()], script))
    }

    /// Runs `usernet ctl` against it.
    pub fn ctl(&self, arguments: &[&str]) -> Outcome {
        let control = format!("unix:{}", self.control().display());
        self.world.run(&[&["ctl", "--control", &control], arguments].concat())
    }

    /// What `usernet ctl WHAT --json` says: a list.
    pub fn list(&self, what: &str) -> Vec<Value> {
        let outcome = self.ctl(&[what, "--json"]);
        match serde_json::from_str(outcome.ok()) {
            Ok(Value::Array(list)) => list,
            _ => panic!("no list: {outcome}"),
        }
    }

    /// The host addresses of all forwards.
    pub fn forwards(&self) -> Vec<SocketAddr> {
        let forwards = self.list("forwards");
        forwards.iter().map(|forward| forward["host"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// The host address of the only forward.
    pub fn forwarded(&self) -> SocketAddr {
        let [forwarded] = self.forwards().try_into().unwrap();
        forwarded
    }

    /// Waits until `usernet ctl WHAT` lists nothing any more.
    pub fn until_none(&self, what: &str) {
        eventually(&format!("no {what} are left"), || self.list(what).is_empty().then_some(()));
    }

    /// Ends it with SIGTERM, and checks that it ends well.
    pub fn terminate(mut self) {
        terminate(&mut self.process);
    }

    fn socket_of(world: &World) -> PathBuf {
        world.home().join("net.sock")
    }

    fn control_of(world: &World) -> PathBuf {
        world.home().join("ctl.sock")
    }
}
