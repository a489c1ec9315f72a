//! What holds for machines of every kind.

use usernet_tests::stories;

use crate::{LISTEN, SOCKET, boot};

#[test]
fn a_machine_is_on_a_working_network() {
    stories::a_machine_is_on_a_working_network(&LISTEN, boot);
}

/// The machine sets up both pairs of queues and, with its one processor, uses one.
#[test]
fn a_machine_that_is_offered_two_pairs_of_queues_is_on_a_working_network() {
    let listen = format!("{SOCKET},queues=2");
    stories::a_machine_is_on_a_working_network(&["--vhost-user", &listen, "--workers", "2"], boot);
}

#[test]
fn machines_come_and_go_without_disturbing_each_other() {
    stories::machines_come_and_go(&LISTEN, boot);
}
