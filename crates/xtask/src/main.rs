//! The tasks of this repository: `cargo xtask test` and `cargo xtask bench`.

mod bench;
mod packages;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The tasks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs the tests: all of them, or the suites that are named
    ///
    /// Installs the programs that the suites drive when it runs as root, and says what to run when
    /// it does not.
    Test {
        /// The suites to run, in this order; none: all
        #[arg(value_name = "SUITE")]
        suites: Vec<test::Suite>,
    },
    /// Measures usernet beside others that do the same, and beside what the kernel can do
    ///
    /// Installs the others when it runs as root; who is missing is named, and the rest goes on. See
    /// benches/README.md for what the figures mean.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let result: Result<()> = match Arguments::parse().task {
        Task::Test { suites } => test::run(&suites),
        Task::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
