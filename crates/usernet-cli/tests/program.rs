//! What the program says and how it ends where no network is needed.

use std::process::{Command, Output};

fn usernet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_usernet")).args(arguments).output().expect("it was built")
}

fn assert_one_line_of_error(arguments: &[&str], code: i32, words: &str) {
    let output = usernet(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.starts_with("usernet: error: ") && said.contains(words), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    assert_one_line_of_error(&["--no-such-option"], 2, "--no-such-option");
    assert_one_line_of_error(&["--mtu", "100"], 2, "576 to 65520");
    assert_one_line_of_error(&["--hostfwd", "tcp:localhost:80-:80"], 2, "host address");
    assert_one_line_of_error(&["exec", "--net", "127.0.0.0/8", "--", "true"], 2, "10.0.2.0/24");
    assert_one_line_of_error(&["run"], 2, "QEMU");
}

#[test]
fn a_failure_ends_with_1() {
    assert_one_line_of_error(&["ctl", "--control", "/nowhere/ctl.sock", "leases"], 1, "/nowhere/ctl.sock");
    assert_one_line_of_error(&["--listen", "unix:/nowhere/sock"], 1, "--listen");
    assert_one_line_of_error(&["--ready-fd", "999"], 1, "--ready-fd");
}

#[test]
fn help_goes_to_stdout_and_ends_with_0() {
    for arguments in [&["--help"][..], &["exec", "--help"], &["run", "--help"], &["ctl", "--help"], &["-V"]] {
        let output = usernet(arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
    }
}
