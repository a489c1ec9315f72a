//! DNS at the network's nameserver.

use usernet_tests::dns::{BIG_STRINGS, DnsServer};
use usernet_tests::{NAMESERVER, Outcome, World};

/// Runs a script in a guest whose network asks `server`.
fn exec(world: &World, server: &DnsServer, script: &str) -> Outcome {
    let option = server.option();
    world.exec(&option.each_ref().map(String::as_str), script)
}

#[test]
fn dig_gets_answers_over_udp_and_tcp() {
    let world = World::new();
    let server = DnsServer::start();
    for transport in ["+notcp", "+tcp"] {
        for (question, answer) in [
            ("a.test A", "192.0.2.80\n"),
            ("a.test AAAA", "2001:db8::80\n"),
            ("text.test TXT", "\"plain words\"\n"),
            ("text.test A", ""),
        ] {
            let outcome = exec(&world, &server, &format!("dig +short +tries=1 {transport} {question}"));
            assert_eq!(outcome.ok(), answer, "{transport} {question}");
        }
    }
}

#[test]
fn an_answer_too_big_for_udp_is_cut_and_whole_over_tcp() {
    let world = World::new();
    let server = DnsServer::start();
    let cut = exec(&world, &server, "dig +ignore +tries=1 big.test TXT");
    assert!(cut.ok().lines().any(|line| line.contains("flags:") && line.contains(" tc")), "{cut}");
    let whole = exec(&world, &server, "dig +short +tries=1 big.test TXT");
    assert_eq!(whole.ok().lines().count(), BIG_STRINGS, "dig asks again over TCP by itself");
}

#[test]
fn names_that_do_not_exist_are_told_from_records_that_do_not() {
    let world = World::new();
    let server = DnsServer::start();
    let missing = exec(&world, &server, "dig +tries=1 nobody.test A");
    assert!(missing.ok().contains("status: NXDOMAIN"), "{missing}");
    let empty = exec(&world, &server, "dig +tries=1 text.test A");
    assert!(empty.ok().contains("status: NOERROR"), "{empty}");
}

#[test]
fn programs_find_names_through_resolv_conf() {
    let world = World::new();
    let server = DnsServer::start();
    let found = exec(&world, &server, "getent ahostsv4 a.test");
    assert!(found.ok().starts_with("192.0.2.80 "), "{found}");
}

#[test]
fn answers_are_kept_for_their_time_to_live() {
    let world = World::new();
    let server = DnsServer::start();
    exec(&world, &server, "for i in 1 2 3; do dig +short +tries=1 counted.test A; done").ok();
    let asked = server.queries().iter().filter(|query| query.contains("counted.test.")).count();
    assert_eq!(asked, 1, "{:?}", server.queries());
}

#[test]
fn the_network_has_names_of_its_own() {
    let world = World::new();
    // An NXDOMAIN for the one type would unmake the name for resolvers that ask for both.
    for (options, server, answers) in [
        (&[][..], NAMESERVER.to_string(), "10.0.2.2\nfd00::2\ngateway.usernet.internal.\n"),
        (&["--ipv4-only"], NAMESERVER.to_string(), "10.0.2.2\n"),
        (&["--ipv6-only"], "fd00::3".to_owned(), "fd00::2\ngateway.usernet.internal.\n"),
    ] {
        let dig = format!("dig +tries=1 @{server} gateway.usernet.internal");
        let whole = world.exec(options, &format!("{dig} A; {dig} AAAA"));
        assert_eq!(whole.ok().matches("status: NOERROR").count(), 2, "{options:?}: {whole}");
        let back = "dig +tries=1 +short -x fd00::2";
        let short = world.exec(options, &format!("{dig} +short A; {dig} +short AAAA; {back} @{server}"));
        assert_eq!(short.ok(), answers, "{options:?}");
    }
}
