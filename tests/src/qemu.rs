//! A virtual machine: QEMU without KVM, Debian's kernel, busybox, and the probe.
//!
//! The machine has two serial ports. The kernel writes to the first; the second is a shell that
//! the test speaks to, one command at a time: [`Machine::run`].

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Process, finish};
use crate::world::target;
use crate::{As, World};

/// How long a command in the guest may take: an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest boots is made by this script, which says more.
const BUILD: &str = include_str!("../machine/build.sh");

/// A machine that runs until it is dropped.
pub struct Machine {
    /// QEMU, or `usernet run` with QEMU in it.
    pub process: Process,
    stdin: PipeWriter,
    lines: Receiver<String>,
    commands: usize,
}

impl Machine {
    /// Boots a machine with these further arguments (its network), and waits for its shell.
    pub fn boot(world: &World, arguments: &[&str]) -> Self {
        let mut command = world.command(As::User, "qemu-system-x86_64");
        command.args(machine(world)).args(arguments);
        Self::start(command)
    }

    /// Boots a machine by `usernet run OPTIONS -- qemu-system-x86_64 ...`, and waits for its shell.
    pub fn boot_by_usernet_run(world: &World, options: &[&str]) -> Self {
        let mut command = world.command(As::User, world.usernet());
        command.arg("run").args(options).args(["--", "qemu-system-x86_64"]).args(machine(world));
        Self::start(command)
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

/// The arguments of the machine, all but its network.
fn machine(world: &World) -> Vec<String> {
    let (kernel, initramfs) = image(world);
    let arguments =
        "-accel tcg -machine q35 -cpu max -m 512 -nodefaults -display none -action panic=exit-failure";
    let mut arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
    let log = world.home().join("kernel.log");
    arguments.extend(["-serial".to_owned(), format!("file:{}", log.display())]);
    arguments.extend(["-serial".to_owned(), "stdio".to_owned()]);
    arguments.extend(["-kernel".to_owned(), kernel.display().to_string()]);
    arguments.extend(["-initrd".to_owned(), initramfs.display().to_string()]);
    arguments.extend(["-append".to_owned(), "console=ttyS0 quiet panic=-1".to_owned()]);
    arguments
}

/// The kernel and the initramfs, made once a world.
fn image(world: &World) -> (PathBuf, PathBuf) {
    let folder = world.home().with_file_name("machine");
    let (kernel, initramfs) = (folder.join("kernel"), folder.join("initramfs"));
    if folder.exists() {
        return (kernel, initramfs);
    }
    let unpacked = target().join("lab/kernel");
    assert!(unpacked.exists(), "no {}: cargo xtask test qemu fetches it", unpacked.display());
    fs::create_dir(&folder).unwrap();
    let mut build = Command::new("sh");
    build.args(["-c", BUILD, "build.sh"]).args([&unpacked, &folder, &world.probe()]);
    finish(build, PATIENCE).ok();
    (kernel, initramfs)
}
