//! The whole program while a guest moves bytes, watched by strace or perf.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Family, Programs};

/// How a guest is plugged in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Plug {
    /// It is a namespace of `usernet exec`.
    Tap,
    /// It is rings without a kernel.
    VhostUser,
}

/// How long bytes move, in milliseconds.
const TIME: &str = "1500";
/// How long starting may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// System calls for each 64 KiB that a guest moves. The start of the program does not count, nor that of the
/// guest.
pub(super) fn system_calls(programs: &Programs, plug: Plug, family: Family, work: &str) -> Result<f64> {
    let server = Server::start(programs, family)?;
    let (calls, moved) = traced(programs, plug, &server, work, TIME)?;
    let (start, moved_at_start) = match plug {
        Plug::Tap => (trace_exec(programs, &["true".as_ref()])?.0, 0.0),
        Plug::VhostUser => traced(programs, plug, &server, work, "0")?,
    };
    Ok((calls - start) / ((moved - moved_at_start) / 65_536.0))
}

/// The percent of the program's time, that in the kernel included, that is spent in functions that compute
/// checksums.
///
/// # Errors
/// It cannot be sampled.
pub(super) fn checksums(programs: &Programs, family: Family, work: &str) -> Result<f64> {
    let server = Server::start(programs, family)?;
    let folder = tempfile::tempdir()?;
    let samples = folder.path().join("samples");
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "--event=cpu-clock", "--freq=4000", "--output"]).arg(&samples).arg("--");
    with_rings(perf, programs, folder.path(), &server, work, TIME)?;

    let mut perf = Command::new("perf");
    perf.args(["report", "--stdio", "--no-children", "--sort=symbol", "--percent-limit=0", "--input"]);
    let Output { stdout, stderr, .. } = perf.arg(&samples).output().context("cannot run perf")?;
    let report = String::from_utf8_lossy(&stdout);
    // "     1.23%  [k] csum_partial"
    let share = |line: &str| {
        let (percent, symbol) = line.trim().split_once('%')?;
        Some((percent.parse::<f64>().ok()?, symbol.to_lowercase()))
    };
    let shares: Vec<_> = report.lines().filter_map(share).collect();
    ensure!(!shares.is_empty(), "no samples: {}", String::from_utf8_lossy(&stderr).trim());
    let sums = shares.iter().filter(|(_, symbol)| symbol.contains("checksum") || symbol.contains("csum"));
    Ok(sums.map(|(percent, _)| percent).sum())
}

/// The servers of `usernet-load`. They end when this is dropped.
struct Server {
    process: Child,
    /// Where guests find them.
    address: SocketAddr,
}

impl Server {
    fn start(programs: &Programs, family: Family) -> Result<Self> {
        let mut command = Command::new(&programs.load);
        command.args(["serve", "--address", if family == Family::V4 { "127.0.0.1" } else { "::1" }]);
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().context("the server has no output")?;
        let mut server = Self { process, address: (family.gateway(), 0).into() };
        let mut ports = String::new();
        BufReader::new(stdout).read_line(&mut ports)?;
        let ports: Value = serde_json::from_str(&ports)?;
        let port = ports.get("tcp").and_then(Value::as_u64).context("the server has no port")?;
        server.address.set_port(u16::try_from(port)?);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many system calls there were, and how many bytes moved.
fn traced(programs: &Programs, plug: Plug, server: &Server, work: &str, time: &str) -> Result<(f64, f64)> {
    if plug == Plug::Tap {
        let address = server.address.to_string();
        let load = [programs.load.as_os_str(), work.as_ref(), address.as_ref()];
        let (calls, output) =
            trace_exec(programs, &[&load[..], &["--time".as_ref(), time.as_ref()]].concat())?;
        return Ok((calls, moved(&output)?));
    }
    let folder = tempfile::tempdir()?;
    let counts = folder.path().join("counts");
    let moved = with_rings(strace(&counts), programs, folder.path(), server, work, time)?;
    Ok((total(&counts)?, moved))
}

/// The system calls of `usernet exec` for this command, and what the command wrote.
fn trace_exec(programs: &Programs, command: &[&OsStr]) -> Result<(f64, String)> {
    let counts = tempfile::NamedTempFile::new()?;
    let mut strace = strace(counts.path());
    strace.arg(&programs.usernet).args(["exec", "--"]).args(command);
    strace.env("RUST_LOG", "error").stderr(Stdio::inherit());
    let output = strace.output().context("cannot run strace")?;
    Ok((total(counts.path())?, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Has a guest without a kernel move bytes by a `usernet` that `watcher` starts. Returns how many.
fn with_rings(
    mut watcher: Command,
    programs: &Programs,
    folder: &Path,
    server: &Server,
    work: &str,
    time: &str,
) -> Result<f64> {
    let (socket, control) = (folder.join("guest"), folder.join("control"));
    watcher.arg(&programs.usernet).arg("--vhost-user").arg(&socket);
    watcher.args(["--control", &format!("unix:{}", control.display())]);
    watcher.env("RUST_LOG", "error").stdout(Stdio::null());
    let program = watcher.get_program().to_owned();
    let mut watcher = watcher.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let moved = wait_for(&socket).and_then(|()| {
        let mut load = Command::new(&programs.load);
        load.arg("rings").arg(&socket).args([work, &server.address.to_string(), "--time", time]);
        load.args(["--warm-up", "0"]);
        let Output { stdout, stderr, .. } = load.output()?;
        moved(&String::from_utf8_lossy(&stdout))
            .with_context(|| String::from_utf8_lossy(&stderr).into_owned())
    });
    // The watcher ends with the only process that it has started, and then writes what it has seen.
    let watcher_id = watcher.id();
    let children = fs::read_to_string(format!("/proc/{watcher_id}/task/{watcher_id}/children"))?;
    let child = children.trim().parse().ok().and_then(Pid::from_raw);
    kill_process(child.with_context(|| format!("not one process: {children}"))?, Signal::TERM)?;
    watcher.wait()?;
    moved
}

fn wait_for(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "nobody listens on {}", socket.display());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Counts the system calls of what follows.
fn strace(counts: &Path) -> Command {
    let mut command = Command::new("strace");
    // What the program starts is the guest, with which strace has nothing to do.
    command.args(["--follow-forks", "--detach-on=execve", "--summary-only", "--summary-columns=calls,name"]);
    command.arg("--output").arg(counts);
    command
}

fn total(counts: &Path) -> Result<f64> {
    let counts = fs::read_to_string(counts)?;
    let total = counts.lines().find_map(|line| line.trim().strip_suffix(" total"));
    Ok(total.with_context(|| format!("strace says: {counts}"))?.trim().parse()?)
}

fn moved(output: &str) -> Result<f64> {
    let result: Value = serde_json::from_str(output).with_context(|| format!("no result: {output}"))?;
    result.get("moved_bytes").and_then(Value::as_f64).context("nothing moved")
}
