//! Costs that can be counted instead of timed, and what they may be.
//!
//! A count is the same on a busy machine, or nearly so: instructions of the core under callgrind, the
//! memory of many flows, and system calls of the whole program under strace. That nothing sums up payload
//! shows in a profile by perf.

mod watched;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use crate::{Family, Programs};
use watched::{Plug, checksums, system_calls};

/// How much more than its budget something may cost: other compilers and C libraries count differently.
const TOLERANCE: f64 = 1.05;
/// How often system calls are counted. They vary with how much is ready at a time, so the median of what
/// they were becomes the budget, and the least of what they are must keep to it.
const RUNS: usize = 7;
/// How often at most, while the least is over the budget.
const MOST_RUNS: usize = 21;

/// Percent of its time that the program may spend in checksums where guests leave them to us: those of IPv4
/// headers. To sum up the payload would take ten times as much.
const MOST_CHECKSUMS: f64 = 1.0;

/// The ways that bytes move, as `usernet-load` and people say it.
const DIRECTIONS: [(&str, &str); 2] = [("tcp-out", "guest to host"), ("tcp-in", "host to guest")];

/// What things cost, or may.
pub type Costs = BTreeMap<String, f64>;

/// Counts all costs and prints them beside their budget, which is in the file `budget`.
///
/// # Errors
/// Something costs more than its budget by over 5 %, has none, or cannot be counted.
pub fn check(programs: &Programs, budget: &Path) -> Result<()> {
    let text = fs::read_to_string(budget).with_context(|| format!("cannot read {}", budget.display()))?;
    let budgets: Costs = serde_json::from_str(&text).with_context(|| budget.display().to_string())?;
    let costs = count(programs, &budgets)?;

    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["cost", "budget", "now", "now / budget"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let mut over = Vec::new();
    for (name, cost) in &costs {
        let budget = budgets.get(name).copied().unwrap_or(0.0);
        table.add_row([name.clone(), budget.to_string(), cost.to_string(), format!("{:.3}", cost / budget)]);
        if *cost > budget * TOLERANCE {
            over.push(name.clone());
        }
    }
    for (family, (work, what)) in Family::ALL.into_iter().flat_map(|family| DIRECTIONS.map(|d| (family, d))) {
        let name = format!("percent of time in checksums: {what}, vhost-user{}", family.suffix());
        match checksums(programs, family, work) {
            Ok(share) => {
                table.add_row([
                    name.clone(),
                    MOST_CHECKSUMS.to_string(),
                    format!("{share:.2}"),
                    format!("{:.3}", share / MOST_CHECKSUMS),
                ]);
                over.extend((share > MOST_CHECKSUMS).then_some(name));
            }
            // Not every machine lets itself be sampled.
            Err(error) => eprintln!("{name}: not known: {error:#}"),
        }
    }
    writeln!(std::io::stdout(), "{table}")?;
    ensure!(
        over.is_empty(),
        "over the budget: {}; if that is worth it, accept it by `cargo xtask bench --accept-budget` and \
         commit {}",
        over.join("; "),
        budget.display()
    );
    Ok(())
}

/// Counts all costs and writes them as the budget.
///
/// # Errors
/// Something cannot be counted or written.
pub fn accept(programs: &Programs, budget: &Path) -> Result<()> {
    let costs = serde_json::to_string_pretty(&count(programs, &Costs::new())?)?;
    fs::write(budget, costs.clone() + "\n").with_context(|| format!("cannot write {}", budget.display()))?;
    writeln!(std::io::stdout(), "{costs}")?;
    Ok(())
}

/// Counts everything; what varies, until it is within the budget or there is no hope.
fn count(programs: &Programs, budgets: &Costs) -> Result<Costs> {
    let mut costs = Costs::new();
    for family in Family::ALL {
        let segments = match family {
            Family::V4 => "guest to host, segments of 1460 bytes",
            Family::V6 => "guest to host, segments of 1440 bytes",
        };
        for (work, what) in [
            ("out-segments", segments),
            ("out-super", "guest to host, one frame"),
            ("in", "host to guest"),
            ("udp-out", "guest to host, datagrams of 1400 bytes"),
            ("udp-in", "host to guest, datagrams of 1400 bytes"),
        ] {
            let cost = instructions(&programs.core_load, family, work)?;
            costs.insert(format!("core instructions per 64 KiB: {what}{}", family.suffix()), cost);
        }
        let bytes = bytes_per_flow(&programs.core_load, family, 100_000)?;
        costs.insert(format!("core bytes per flow of 100,000{}", family.suffix()), bytes);
        for (plug, by) in [(Plug::Tap, ""), (Plug::VhostUser, ", vhost-user")] {
            for (work, what) in DIRECTIONS {
                let name = format!("system calls per 64 KiB: {what}, MTU 1500{by}{}", family.suffix());
                let count = || system_calls(programs, plug, family, work);
                let cost = least_of(count, budgets.get(&name).copied())?;
                costs.insert(name, (cost * 100.0).round() / 100.0);
            }
        }
    }
    Ok(costs)
}

/// What varies: the least of several runs where there is a budget, else the median.
fn least_of(count: impl Fn() -> Result<f64>, budget: Option<f64>) -> Result<f64> {
    let mut counts = Vec::new();
    loop {
        counts.push(count()?);
        counts.sort_unstable_by(f64::total_cmp);
        if counts.len() < RUNS {
            continue;
        }
        let least = counts.first().copied().unwrap_or(f64::INFINITY);
        match budget {
            Some(budget) if least > budget * TOLERANCE && counts.len() < MOST_RUNS => {}
            Some(_) => return Ok(least),
            None => return Ok(counts.get(RUNS / 2).copied().unwrap_or(least)),
        }
    }
}

/// Instructions of the core for 64 KiB: what twenty times as much costs more, so that the start of the
/// program does not count.
fn instructions(core_load: &Path, family: Family, work: &str) -> Result<f64> {
    let collect = |amount: u32| -> Result<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(core_load)
            .args(load(family, work, amount))
            .output()
            .context("cannot run valgrind")?;
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        let collected = output.lines().find_map(|line| Some(line.split_once("Collected :")?.1.trim()));
        Ok(collected.with_context(|| format!("valgrind says: {output}"))?.parse()?)
    };
    Ok(((collect(1050)? - collect(50)?) / 1000.0).round())
}

/// Resident memory of the core for each of `flows` idle TCP flows.
pub(crate) fn bytes_per_flow(core_load: &Path, family: Family, flows: u32) -> Result<f64> {
    let output = Command::new(core_load).args(load(family, "flows", flows)).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// What `usernet-core-load` is called with.
fn load(family: Family, work: &str, amount: u32) -> [String; 3] {
    let family = if family == Family::V4 { "4" } else { "6" };
    [work.to_owned(), amount.to_string(), format!("--family={family}")]
}
