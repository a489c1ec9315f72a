//! A shell that runs somewhere else, and does one command at a time.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// A process with a shell behind its standard streams, in whatever network it is. It ends when this
/// is dropped.
pub(super) struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// What it and the programs around it complain.
    complaints: PathBuf,
    commands: usize,
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
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
        });
        Ok(Self { stdin: child.stdin.take(), child, lines, complaints, commands: 0 })
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
        let stdin = self.stdin.as_mut().context("the shell has no input")?;
        // A shell that is gone is noticed when it does not answer.
        let _ = stdin.write_all(format!("{{ {script}\n}} </dev/null 2>&1\necho {marker} $?\n").as_bytes());
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

    /// The next line of something in the background.
    pub(super) fn line(&self, patience: Duration) -> Result<String> {
        self.lines.recv_timeout(patience).map_err(|_| {
            let complaints = fs::read_to_string(&self.complaints).unwrap_or_default();
            anyhow::anyhow!("nothing within {} s; {}", patience.as_secs(), last_line(&complaints))
        })
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or("it said nothing")
}
