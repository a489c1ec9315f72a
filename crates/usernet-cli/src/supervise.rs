//! Living as long as a command does, and ending as it does.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus};

use anyhow::Result;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// Waits for the command and returns the status to end with. What asks this process to end is
/// passed on to the command, which decides; keys of a terminal that both have reach it by themselves.
pub(crate) fn supervise(mut child: Child) -> Result<ExitCode> {
    let pid = Pid::from_child(&child);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let status = runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok::<ExitStatus, std::io::Error>(status);
            }
            let passed_on = tokio::select! {
                _ = ended.recv() => None,
                _ = interrupt.recv() => Some(Signal::INT).filter(|_| !have_terminal()),
                _ = quit.recv() => Some(Signal::QUIT).filter(|_| !have_terminal()),
                _ = terminate.recv() => Some(Signal::TERM),
                _ = hangup.recv() => Some(Signal::HUP),
            };
            if let Some(signal) = passed_on {
                // It cannot be another process: the command has not been waited for.
                let _ = kill_process(pid, signal);
            }
        }
    })?;
    Ok(exit_code(status))
}

/// As shells have it: the status, or 128 and the number of the signal.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Whether this process is in the foreground of a terminal, whose keys then signal the command, too.
fn have_terminal() -> bool {
    rustix::termios::tcgetpgrp(rustix::stdio::stdin()).is_ok_and(|foreground| foreground == getpgrp())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(script: &str) -> ExitCode {
        supervise(Command::new("sh").args(["-c", script]).spawn().unwrap()).unwrap()
    }

    #[test]
    fn the_status_is_the_commands() {
        assert_eq!(run("exit 0"), ExitCode::from(0));
        assert_eq!(run("exit 42"), ExitCode::from(42));
        assert_eq!(run("kill -KILL $$"), ExitCode::from(137));
    }
}
