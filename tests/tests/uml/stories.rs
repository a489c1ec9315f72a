//! What holds for machines of every kind.

use usernet_tests::stories;

use crate::{LISTEN, boot};

#[test]
fn a_machine_is_on_a_working_network() {
    stories::a_machine_is_on_a_working_network(&LISTEN, boot);
}

#[test]
fn a_machine_of_several_workers_is_on_a_working_network() {
    stories::a_machine_is_on_a_working_network(&[&LISTEN[..], &["--workers", "2"]].concat(), boot);
}

#[test]
fn machines_come_and_go_without_disturbing_each_other() {
    stories::machines_come_and_go(&LISTEN, boot);
}
