//! The `usernet` program: a daemon that guests plug in to, and commands that run a guest.
//!
//! It is one user of the library's face and reaches past nothing. `exec` and `run` start a network
//! and one guest of it; `ctl` asks a daemon.

mod args;
mod control;
mod ctl;
mod daemon;
mod endpoint;
mod exec;
mod guests;
mod handover;
mod listen;
mod namespace;
mod netlink;
mod paths;
mod qemu;
mod run;
mod supervise;
mod sys;

use std::fmt;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};

/// An error of the one who typed the command line: exit status 2 instead of 1.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let outcome = match Cli::try_parse() {
        Ok(Cli { command, daemon }) => match command {
            None => {
                log_to_stderr("info", daemon.verbosity.verbose);
                daemon::run(&daemon)
            }
            Some(Command::Exec(args)) => {
                log_to_stderr("warn", args.verbosity.verbose);
                exec::run(&args)
            }
            Some(Command::Run(args)) => {
                log_to_stderr("warn", args.verbosity.verbose);
                run::run(&args)
            }
            Some(Command::Ctl(args)) => ctl::run(&args),
            Some(Command::ExecGuest(args)) => exec::guest(&args),
        },
        Err(error) if error.use_stderr() && !wants_help(&error) => Err(args::usage_error(&error).into()),
        Err(help) => help.exit(),
    };
    outcome.unwrap_or_else(|error| {
        // The way out is on the same line, whatever the causes had to say.
        eprintln!("usernet: error: {}", format!("{error:#}").replace('\n', " "));
        ExitCode::from(if is_usage(&error) { 2 } else { 1 })
    })
}

/// Whether it is an error of the command line: what does not fit together, or does not fit this host.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>() || matches!(error.downcast_ref(), Some(usernet::Error::Config(_)))
}

/// Whether nothing is wrong but that something more must be said, which the help shows best.
fn wants_help(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// Logs from `level` on, and from one level lower for each `-v`; `RUST_LOG` overrules.
fn log_to_stderr(level: &str, verbose: u8) {
    const LEVELS: [&str; 4] = ["warn", "info", "debug", "trace"];
    let at = LEVELS.iter().position(|name| *name == level).unwrap_or(0) + usize::from(verbose);
    let level = LEVELS.get(at).unwrap_or(&"trace");
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("warn,usernet={level}")));
    tracing_subscriber::fmt()
        .compact()
        .without_time()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .with_env_filter(filter)
        .init();
}
