//! `cargo xtask bench`: the comparison with others.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use usernet_benches::compare::{self, Programs};

use crate::packages::{self, Program, program};
use crate::test::{cargo, enter_workspace};

/// Who is compared, and what they are run with.
const COMPARISON: &[Program] = &[
    program("ip", "iproute2"),
    program("pasta", "passt"),
    program("slirp4netns", "slirp4netns"),
    program("socat", "socat"),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    comparison: compare::Options,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Files that are named are where the caller is.
    let mut options = arguments.comparison.clone();
    let here = env::current_dir().context("there is no current folder")?;
    for file in [&mut options.json, &mut options.svg].into_iter().flatten() {
        *file = here.join(&*file);
    }
    enter_workspace()?;
    packages::offer(COMPARISON);
    cargo("build --release --package usernet-cli --package usernet-benches --bins")?;
    compare::run(&options, &Programs { usernet: built("usernet"), load: built("usernet-load") })
}

fn built(program: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join(Path::new("release").join(program))
}
