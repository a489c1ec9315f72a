//! User Mode Linux machines, which have their network by vhost-user.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "whatever goes wrong here is the failure of a test"
)]

mod bulk;
mod lab;
mod neighbours;
mod restart;
mod stories;

use usernet_tests::machine::Machine;
use usernet_tests::{Daemon, World};

/// Where a daemon with [`LISTEN`] listens, in the folder that it runs in.
const SOCKET: &str = "vhost.sock";

/// The options of a daemon that these machines can plug in to.
const LISTEN: [&str; 2] = ["--vhost-user", SOCKET];

/// Boots a machine whose card has this last byte of its address.
fn boot(world: &World, _: &Daemon<'_>, card: u8) -> Machine {
    Machine::boot_uml(world, &world.home().join(SOCKET), card)
}

/// A daemon with these options, too.
fn network<'w>(world: &'w World, options: &[&str]) -> Daemon<'w> {
    Daemon::start(world, &[&LISTEN, options].concat())
}
