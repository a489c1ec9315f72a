//! `cargo xtask test`: the suites, one after the other.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::packages;

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Unit and documentation tests of the crates
    Unit,
    /// The network against a simulated guest and host, over many seeds
    Sim,
    /// The whole program with real programs in namespaces
    Net,
    /// The whole program with real QEMU guests
    Qemu,
    /// The whole program with real User Mode Linux guests
    Uml,
    /// The fuzz targets: their committed corpus, and a short run of each
    Fuzz,
}

/// Runs the suites and ends with a summary. A suite that fails does not keep the next from running.
pub(crate) fn run(suites: &[Suite]) -> Result<()> {
    let suites = if suites.is_empty() { Suite::value_variants() } else { suites };
    enter_workspace()?;
    packages::provide(suites)?;

    let mut failed = Vec::new();
    for suite in suites {
        let started = Instant::now();
        eprintln!("\n==> {}", suite.name());
        match suite.run() {
            Ok(()) => eprintln!("==> {}: passed in {} s", suite.name(), started.elapsed().as_secs()),
            Err(error) => {
                eprintln!("==> {}: FAILED: {error:#}", suite.name());
                failed.push(suite.name());
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    eprintln!("\n==> all passed: {}", suites.iter().map(Suite::name).collect::<Vec<_>>().join(", "));
    Ok(())
}

impl Suite {
    fn name(&self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(&self) -> Result<()> {
        match self {
            // The testkit's own tests are the simulation.
            Self::Unit => cargo("test --workspace --exclude usernet-tests --exclude usernet-testkit"),
            Self::Sim => cargo("test --package usernet-testkit"),
            Self::Net => real_guests("net"),
            Self::Qemu => real_guests("qemu"),
            Self::Uml => real_guests("uml"),
            Self::Fuzz => cargo("test --manifest-path fuzz/Cargo.toml"),
        }
    }
}

/// Builds the program as its users get it, and runs one file of tests against it.
fn real_guests(tests: &str) -> Result<()> {
    cargo("build --release --package usernet-cli")?;
    let mut command = Command::new("cargo");
    if !rustix::process::geteuid().is_root() {
        // The tests make network namespaces, for which one has to be root somewhere.
        command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "cargo"]);
    }
    command.args(["test", "--package", "usernet-tests", "--test", tests]);
    status(&mut command)
}

pub(crate) fn cargo(arguments: &str) -> Result<()> {
    status(Command::new("cargo").args(arguments.split(' ')))
}

/// Runs a command to its end, its output passed through.
pub(crate) fn status(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Tasks run in the root of the workspace, wherever they are called from.
pub(crate) fn enter_workspace() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/xtask lies two below");
    env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))
}
