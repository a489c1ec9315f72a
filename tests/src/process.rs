//! Programs that are run to their end, and programs that stay.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use crate::eventually;
use crate::wait::{SOON, readable};

/// What became of a program that was run to its end.
#[derive(Debug)]
pub struct Outcome {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// Runs a program to its end, with nothing to read on its standard input.
///
/// # Panics
/// It took longer than `within`; it and its children are killed then.
pub fn finish(command: Command, within: Duration) -> Outcome {
    let mut process = Process::spawn(command);
    let status = process.wait(within);
    Outcome { command: process.command.clone(), status, stdout: process.stdout(), stderr: process.stderr() }
}

impl Outcome {
    /// The standard output of a program that succeeded.
    ///
    /// # Panics
    /// It failed; the message has all that it wrote.
    pub fn ok(&self) -> &str {
        assert!(self.status.success(), "{self}");
        &self.stdout
    }

    /// The exit code; 128 and the signal's number when a signal ended it, as shells have it.
    pub fn code(&self) -> i32 {
        self.status.code().or_else(|| Some(128 + self.status.signal()?)).unwrap()
    }

    /// Whether either output has the text.
    pub fn says(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}\n{}{}", self.command, self.status, self.stdout, self.stderr)
    }
}

/// A program that stays until it is dropped, then it and its children are killed. When the test
/// fails, what it wrote is shown.
#[derive(Debug)]
pub struct Process {
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Process {
    /// Starts a program with its output kept. Its standard input is empty unless the command says
    /// otherwise by [`Process::spawn_with`].
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with(command, Stdio::null())
    }

    /// Starts a program with `stdin` as its standard input.
    pub fn spawn_with(command: Command, stdin: impl Into<Stdio>) -> Self {
        let stdout = tempfile::tempfile().unwrap();
        let clone = stdout.try_clone().unwrap();
        Self::start(command, stdin.into(), clone.into(), stdout)
    }

    /// Starts a program that is spoken to: its standard input and output are the caller's.
    pub fn spawn_piped(command: Command, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Self {
        Self::start(command, stdin.into(), stdout.into(), tempfile::tempfile().unwrap())
    }

    fn start(mut command: Command, stdin: Stdio, to: Stdio, stdout: File) -> Self {
        let stderr = tempfile::tempfile().unwrap();
        command.stdin(stdin).stdout(to).stderr(stderr.try_clone().unwrap());
        let shown = format!("{command:?}").replace('"', "");
        let child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        Self { command: shown, child, stdout, stderr }
    }

    /// Its process number.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Waits until it has written a whole line with `text` in it to its standard output, and
    /// returns that line.
    ///
    /// # Panics
    /// It has not, soon, or has ended without.
    pub fn line_with(&mut self, text: &str) -> String {
        let what = format!("{}: writes a line with {text}", self.command);
        eventually(&what, || {
            let ended = self.child.try_wait().unwrap();
            let written = self.stdout();
            let mut lines = written.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let line = lines.find(|line| line.contains(text)).map(str::to_owned);
            if let (None, Some(status)) = (&line, ended) {
                panic!("{what}, but it ended: {status}");
            }
            line
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It has not ended by then.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let ended = readable(&pidfd, Instant::now() + within);
        assert!(ended, "has not ended within {within:?}: {}", self.command);
        self.child.wait().unwrap()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// The memory that it holds, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The processor time that it has used, all threads together.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The fields after the name, which ends with the last bracket: utime and stime are the
        // 14th and 15th of all, in ticks of 10 ms (proc_pid_stat(5)).
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group is gone when its last process is; an error says just that.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let status = self.child.wait();
        if thread::panicking() {
            println!("--- {}: {status:?}\n{}{}", self.command, self.stdout(), self.stderr());
        }
    }
}

/// Ends a program that was asked to end, and checks that it does so by itself and well.
///
/// # Panics
/// It does not end soon, or ends with a failure.
pub fn terminate(process: &mut Process) {
    process.signal(Signal::TERM);
    let status = process.wait(SOON);
    assert!(status.success(), "{}: {status}", process.command);
}

fn contents(file: &File) -> String {
    // The writer shares the file's offset: read by position, and leave it where it is.
    let length = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
