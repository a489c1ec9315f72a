//! A machine as a guest: QEMU without KVM, or User Mode Linux, with busybox and the probe.
//!
//! Its standard input and output are a shell that the test speaks to, one command at a time:
//! [`Machine::run`].

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use usernet_benches::machine::{Card, build_qemu, build_uml, qemu, uml};

use crate::process::Process;
use crate::world::target;
use crate::{As, World};

pub use usernet_benches::machine::Netdev;

/// How long a command in the guest may take: an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine that runs until it is dropped.
pub struct Machine {
    /// What was started: the machine, or what has it in it. It takes the machine with it.
    pub process: Process,
    stdin: PipeWriter,
    lines: Receiver<String>,
    commands: usize,
}

impl Machine {
    /// Boots a QEMU machine with these further arguments (its network), and waits for its shell.
    pub fn boot(world: &World, arguments: &[impl AsRef<str>]) -> Self {
        let mut command = command_of(world, &qemu(&qemu_image(world), &[]));
        command.args(arguments.iter().map(AsRef::as_ref));
        Self::start(command)
    }

    /// Boots a QEMU machine by `usernet run OPTIONS -- qemu-system-x86_64 ... ARGUMENTS`, and waits for its
    /// shell.
    pub fn boot_by_usernet_run(world: &World, options: &[&str], arguments: &[&str]) -> Self {
        let mut command = world.command(As::User, world.usernet());
        command.arg("run").args(options).arg("--").args(qemu(&qemu_image(world), &[])).args(arguments);
        Self::start(command)
    }

    /// Boots a User Mode Linux machine whose card is plugged in at a vhost-user socket and has this last
    /// byte of its address, and waits for its shell.
    pub fn boot_uml(world: &World, socket: &Path, card: u8) -> Self {
        let mac = format!("MAC={}", mac(card));
        Self::start(command_of(world, &uml(&uml_image(world), Card::VhostUser(socket), &[&mac])))
    }

    fn start(command: Command) -> Self {
        let (guests_stdin, stdin) = pipe().unwrap();
        let (stdout, guests_stdout) = pipe().unwrap();
        let process = Process::spawn_piped(command, guests_stdin, guests_stdout);
        let mut machine = Self { process, stdin, lines: lines_of(stdout), commands: 0 };
        machine.answer("@ready");
        machine
    }

    /// Runs a shell script in the guest, and returns what it wrote.
    ///
    /// # Panics
    /// It failed.
    pub fn run(&mut self, script: &str) -> String {
        let (status, output) = self.try_run(script);
        assert_eq!(status, 0, "in the guest: {script}\n{output}");
        output
    }

    /// Runs a shell script in the guest, and returns its exit status and what it wrote.
    pub fn try_run(&mut self, script: &str) -> (i32, String) {
        self.commands += 1;
        let marker = format!("@{}", self.commands);
        let started = Instant::now();
        self.write(&format!("{marker}\n{script}\n{marker}\n"));
        let (status, output) = self.answer(&marker);
        println!("guest# {script}\n{output}\n({:.1} s)", started.elapsed().as_secs_f32());
        (status.trim().parse().unwrap(), output)
    }

    /// Starts a shell script in the guest that goes on while others run.
    pub fn start_script(&mut self, script: &str) {
        self.run(&format!("({script}) >/dev/null 2>&1 &"));
    }

    /// Restarts the guest without a goodbye to anyone, and waits for its shell.
    pub fn reboot(&mut self) {
        self.write("@\nreboot -f\n@\n");
        self.answer("@ready");
    }

    /// Asks for a lease, sets up the interface by it, and returns what the server said, as lines
    /// `key=value`.
    pub fn dhcp(&mut self) -> String {
        self.run(
            "ip link set eth0 up
            udhcpc -i eth0 -s /lease.sh -n -q -T 1 -t 10 -O mtu -O search -O hostname",
        );
        self.run("cat /lease")
    }

    fn write(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
    }

    /// Reads up to a line that begins with `marker`: the rest of that line, and what was before.
    fn answer(&mut self, marker: &str) -> (String, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut output = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(marker) {
                    Some(rest) => return (rest.to_owned(), output.trim().to_owned()),
                    None => output = output + &line + "\n",
                },
                Err(error) => panic!("the guest says no {marker}: {error}; before it: {output}"),
            }
        }
    }
}

/// Reads lines on a thread of its own, so that they can be waited for with a deadline.
fn lines_of(output: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The address of a card whose last byte is this.
pub fn mac(card: u8) -> String {
    format!("52:54:00:12:34:{card:02x}")
}

/// The address that a machine with this card makes itself from the router's advertisement.
pub fn slaac(card: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3400 | u16::from(card))
}

fn command_of(world: &World, line: &[OsString]) -> Command {
    let (program, arguments) = line.split_first().unwrap();
    let mut command = world.command(As::User, program);
    command.args(arguments);
    command
}

/// What a QEMU machine boots, made once a world.
fn qemu_image(world: &World) -> PathBuf {
    let kernel = target().join("lab/kernel");
    image(world, "qemu", |folder| build_qemu(&kernel, folder, &[&world.probe()]).unwrap())
}

/// What a User Mode Linux machine boots, made once a world.
fn uml_image(world: &World) -> PathBuf {
    image(world, "uml", |folder| build_uml(folder, &[&world.probe()]).unwrap())
}

fn image(world: &World, name: &str, build: impl FnOnce(&Path)) -> PathBuf {
    let folder = world.home().with_file_name(name);
    if !folder.exists() {
        fs::create_dir(&folder).unwrap();
        build(&folder);
    }
    folder
}
