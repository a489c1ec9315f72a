//! `cargo xtask bench`: the comparison with others, and the budget.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use usernet_benches::{Programs, budget, compare};

use crate::packages::{self, Program, program};
use crate::test::{cargo, enter_workspace};

/// Who is compared, and what they are run with.
const COMPARISON: &[Program] = &[
    program("ip", "iproute2"),
    program("busybox", "busybox-static"),
    program("linux.uml", "user-mode-linux"),
    program("pasta", "passt"),
    program("qemu-system-x86_64", "qemu-system-x86"),
    program("slirp4netns", "slirp4netns"),
    program("socat", "socat"),
];

/// What counts.
const COUNTERS: &[Program] =
    &[program("perf", "linux-perf"), program("strace", "strace"), program("valgrind", "valgrind")];

const BUDGET: &str = "benches/budget.json";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    comparison: compare::Options,
    /// Count system calls, instructions and memory instead, and fail where they exceed their budget
    #[arg(long, conflicts_with = "Options")]
    budget: bool,
    /// Count them and write them to benches/budget.json as the new budget
    #[arg(long, conflicts_with_all = ["Options", "budget"])]
    accept_budget: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Files that are named are where the caller is.
    let mut options = arguments.comparison.clone();
    let here = env::current_dir().context("there is no current folder")?;
    for file in [&mut options.json, &mut options.svg].into_iter().flatten() {
        *file = here.join(&*file);
    }
    enter_workspace()?;
    let counts = arguments.budget || arguments.accept_budget;
    packages::offer(if counts { COUNTERS } else { COMPARISON }, !counts);
    // Apart, so that the program is built as its users get it.
    cargo("build --release --package usernet-cli")?;
    cargo("build --release --package usernet-benches --bins")?;
    let programs = Programs {
        usernet: built("usernet"),
        load: built("usernet-load"),
        core_load: built("usernet-core-load"),
        kernel: packages::KERNEL.into(),
    };
    if arguments.accept_budget {
        budget::accept(&programs, Path::new(BUDGET))
    } else if arguments.budget {
        budget::check(&programs, Path::new(BUDGET))
    } else {
        compare::run(&options, &programs)
    }
}

fn built(program: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join(Path::new("release").join(program))
}
