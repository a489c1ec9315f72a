//! A shell that runs somewhere else, and does one command at a time.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A process with a shell behind its standard streams, in whatever network it is. It ends when this
/// is dropped.
pub(super) struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// What it and the programs around it complain.
    complaints: PathBuf,
    commands: usize,
    /// Whether it is the console of a machine, which frames its commands itself.
    is_console: bool,
}

impl Shell {
    /// Starts `command`; what it writes to standard error goes to the file `complaints`.
    pub(super) fn start(command: &mut Command, complaints: PathBuf) -> Result<Self> {
        let stderr = fs::File::create(&complaints)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let stdout = child.stdout.take().context("it has no output")?;
        let (sender, lines) = channel();
        // Lines are read on a thread so that they can be waited for with a deadline.
        thread::spawn(move || {
            let lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
            let text = |line: Vec<u8>| String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            lines.map(|line| sender.send(text(line))).take_while(Result::is_ok).for_each(drop);
        });
        Ok(Self { stdin: child.stdin.take(), child, lines, complaints, commands: 0, is_console: false })
    }

    /// The process that was started.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs `script` and returns what it wrote.
    ///
    /// # Errors
    /// It failed, took longer than `patience`, or the shell is gone. The message is what it or the
    /// programs around it said last.
    pub(super) fn run(&mut self, script: &str, patience: Duration) -> Result<String> {
        self.commands += 1;
        let marker = format!("@{}", self.commands);
        let text = if self.is_console {
            format!("{marker}\n{script}\n{marker}\n")
        } else {
            format!("{{ {script}\n}} </dev/null 2>&1\necho {marker} $?\n")
        };
        // A shell that is gone is noticed when it does not answer.
        let _ = self.stdin.as_mut().context("the shell has no input")?.write_all(text.as_bytes());
        let deadline = Instant::now() + patience;
        let mut output = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(&marker) {
                    Some(status) => {
                        ensure!(status.trim() == "0", "{}", last_line(&output));
                        return Ok(output);
                    }
                    None => output = output + &line + "\n",
                },
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no answer within {} s to: {script}", patience.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let complaints = fs::read_to_string(&self.complaints).unwrap_or_default();
                    bail!("it has ended: {}", last_line(&(output + &complaints)));
                }
            }
        }
    }

    /// Waits until the console of a machine is there, which is what it speaks to from then on.
    pub(super) fn wait_for_console(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.line(deadline.saturating_duration_since(Instant::now()))? != "@ready" {}
        self.is_console = true;
        Ok(())
    }

    /// The next line of something in the background.
    pub(super) fn line(&self, patience: Duration) -> Result<String> {
        self.lines.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                anyhow!("nothing within {} s; {}", patience.as_secs(), self.complaint())
            }
            RecvTimeoutError::Disconnected => anyhow!("it has ended: {}", self.complaint()),
        })
    }

    /// What it or the programs around it complained about last.
    pub(super) fn complaint(&self) -> String {
        last_line(&fs::read_to_string(&self.complaints).unwrap_or_default()).to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The end of its input ends a shell, and that ends what is around it in good order.
        drop(self.stdin.take());
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // A guest that still works would outlive what is around it.
        for process in descendants(self.pid()) {
            let _ = kill_process(process, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that a process has started, and those that they have.
fn descendants(process: u32) -> Vec<Pid> {
    let children = |process: u32| {
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
        let children = children.unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>()
    };
    let mut found = children(process);
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children(*process));
        next += 1;
    }
    let pid = |process: u32| Pid::from_raw(i32::try_from(process).ok()?);
    found.into_iter().filter_map(pid).collect()
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or("it said nothing")
}
