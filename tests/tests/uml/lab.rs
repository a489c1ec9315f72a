//! The lab itself: a failure here is none of `usernet`'s.

use std::fs;

use usernet_tests::machine::Machine;
use usernet_tests::{World, eventually};

#[test]
fn a_machine_boots_and_leaves_no_process_behind() {
    let world = World::new();
    let nobody = world.home().join("nobody");
    let mut machine = Machine::boot_uml(&world, &nobody, 1);
    assert_eq!(machine.try_run("echo hello; exit 7"), (7, "hello".to_owned()));
    machine.reboot();
    machine.run("sleep 1000 &");
    let processes = || {
        let cards = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("cmdline"));
        let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| cards(entry.ok()?).ok());
        lines.filter(|line| line.contains(nobody.to_str().unwrap())).count()
    };
    assert!(processes() > 3, "the machine's own are processes, too: {}", processes());
    drop(machine);
    eventually("all are gone", || (processes() == 0).then_some(()));
}
