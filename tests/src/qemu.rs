//! A virtual machine: QEMU without KVM, Debian's kernel, busybox, and the probe.
//!
//! The machine has two serial ports. The kernel writes to the first; the second is a shell that
//! the test speaks to, one command at a time: [`Machine::run`].

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::process::{Process, finish};
use crate::world::target;
use crate::{As, World};

/// How long a command in the guest may take: an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The modules that a virtio network card needs, in the order that they load in.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ip link set lo up
for module in $(cat /modules/order); do insmod /modules/$module; done
stty -F /dev/ttyS1 raw -echo
exec setsid sh /console </dev/ttyS1 >/dev/ttyS1 2>&1
"#;

/// Evaluates what comes between two markers, and answers with what it wrote and its exit status.
const CONSOLE: &str = r#"echo "@ready"
while read -r marker; do
    script=
    while IFS= read -r line && [ "$line" != "$marker" ]; do script="$script$line
"; done
    sh -c "$script" </dev/null 2>&1
    echo "
$marker $?"
done
"#;

/// What udhcpc runs: sets up the interface, and keeps what it was told in `/lease`.
const LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip address flush dev $interface
ip address add $ip/$mask dev $interface
[ -z "$mtu" ] || ip link set $interface mtu $mtu
ip route add default via $router
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
for key in ip subnet mask router dns lease serverid mtu hostname domain search; do
    eval "echo $key=\$$key"
done >/lease
"#;

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
    let root = folder.join("root");
    for directory in ["bin", "dev", "etc", "modules", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    copy_kernel(&unpacked, &kernel, &root.join("modules"));
    copy_program(&find_program("busybox"), &root.join("bin/busybox"));
    copy_program(&world.probe(), &root.join("bin/probe"));
    copy_libraries(&world.probe(), &root);
    for (path, script) in [("init", INIT), ("console", CONSOLE), ("lease.sh", LEASE)] {
        fs::write(root.join(path), script).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    let mut pack = Command::new("sh");
    pack.args(["-c", r#"find . | busybox cpio -o -H newc >"$0""#]).arg(&initramfs).current_dir(&root);
    finish(pack, PATIENCE).ok();
    (kernel, initramfs)
}

/// Copies the kernel and the modules that it has not built in.
fn copy_kernel(unpacked: &Path, kernel: &Path, modules: &Path) {
    let mut order = String::new();
    let files = walk(unpacked);
    let named = |name: &str| files.iter().find(|path| path.ends_with(name));
    let image = files.iter().find(|path| file_name(path).starts_with("vmlinuz")).unwrap();
    fs::copy(image, kernel).unwrap();
    for module in MODULES {
        let file = format!("{module}.ko");
        if let Some(path) = named(&file) {
            fs::copy(path, modules.join(&file)).unwrap();
            order = order + &file + "\n";
        }
    }
    fs::write(modules.join("order"), order).unwrap();
}

/// Copies the libraries that a program is linked to, to where it looks for them.
fn copy_libraries(program: &Path, root: &Path) {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let outcome = finish(ldd, PATIENCE);
    for library in outcome.ok().split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy_program(Path::new(library), &to);
    }
}

fn copy_program(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

fn find_program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists()).unwrap()
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
