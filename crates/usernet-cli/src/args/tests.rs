use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(line.split_whitespace()).map_err(|error| usage_error(&error).0)
}

fn config(options: &str) -> Result<Config, String> {
    let cli = parse(&format!("usernet {options}"))?;
    let config = match &cli.command {
        Some(Command::Exec(exec)) => exec.network.config_of_one(exec.queues),
        Some(Command::Run(run)) => run.config(),
        _ => cli.daemon.config(),
    };
    config.map_err(|Usage(why)| why)
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn no_option_is_the_default_network() {
    let workers = Some(Config::default().worker_count());
    assert_eq!(config(""), Ok(Config { workers, ..Config::default() }));
}

#[test]
fn options_become_the_configuration() {
    let config = config(
        "--net 192.168.7.0/24 --dns 192.168.7.53 --dns-upstream 127.0.0.1:5353 --dns-upstream ::1 \
         --hostname box --domain lab.example --dns-search a.example --dns-search b.example --mtu 9000 \
         --outbound-addr 192.0.2.7 --outbound-interface eth0 --outbound-addr 2001:db8::7 \
         --no-host-loopback --host-link-local --multicast mdns --multicast ssdp --hostfwd tcp:127.1:0x50-:80 --hostfwd udp::53-:53 --pcap /tmp/a.pcapng --workers 3",
    )
    .unwrap();
    let expected = Config {
        dns: [192, 168, 7, 53].into(),
        dns_upstreams: vec!["127.0.0.1:5353".parse().unwrap(), "[::1]:53".parse().unwrap()],
        hostname: Some("box".into()),
        domain: Some("lab.example".into()),
        dns_search: vec!["a.example".into(), "b.example".into()],
        mtu: 9000,
        host_loopback: false,
        host_link_local: true,
        multicast: MulticastService::ALL.to_vec(),
        outbound: Outbound {
            v4: Some([192, 0, 2, 7].into()),
            v6: Some("2001:db8::7".parse().unwrap()),
            interface: Some("eth0".into()),
        },
        forwards: vec!["tcp:127.0.0.1:80-:80".parse().unwrap(), "udp::53-:53".parse().unwrap()],
        pcap: Some("/tmp/a.pcapng".into()),
        workers: NonZeroU16::new(3),
        ..Config::for_net([192, 168, 7, 0].into(), 24)
    };
    assert_eq!(config, expected);
}

#[test]
fn the_ipv6_network_may_be_laid_out_otherwise() {
    let options = "--net6 fd07::/64 --host6 fd07::1 --dns6 fd07::53 --dhcp6-start fd07::100";
    let [gateway, dns, dhcp_start] =
        ["fd07::1", "fd07::53", "fd07::100"].map(|address| address.parse().unwrap());
    let net = Net6::for_prefix("fd07::".parse().unwrap(), 64);
    assert_eq!(config(options).unwrap().net6, Some(Net6 { gateway, dns, dhcp_start, ..net }));
}

#[test]
fn nat64_has_the_host_where_it_is_put() {
    assert_eq!(config("-6 --nat64 --net 10.9.0.0/24").unwrap().gateway.to_string(), "10.9.0.2");
    assert_eq!(config("-6 --nat64 --host 10.0.2.9").unwrap().gateway.to_string(), "10.0.2.9");
}

#[test]
fn a_network_may_be_restricted() {
    assert_eq!(config("--restrict"), Ok(Config { restrict: true, ..config("").unwrap() }));
}

#[test]
fn there_are_workers_for_all_queues() {
    let workers = |options| config(options).unwrap().workers.unwrap().get();
    assert_eq!(workers("--vhost-user a,queues=40 --vhost-user b,queues=2"), 40);
    assert_eq!(workers("--vhost-user a"), workers(""));
    assert_eq!(workers("--vhost-user a,queues=2 --workers 3"), 3);
    assert_eq!(workers("run --vhost-user --queues 3 qemu"), 3);
    assert_eq!(workers("run qemu"), 1);
}

#[test]
fn a_network_may_have_a_mask() {
    assert_eq!(config("--net 10.9.0.0/255.255.0.0").unwrap().prefix_len, 16);
    assert!(config("--net 10.9.0.0/255.0.255.0").unwrap_err().contains("such as 10.0.2.0/24"));
}

#[test]
fn what_is_wrong_is_said_on_one_line() {
    for (options, words) in [
        ("--mtu 100", "576 to 65520"),
        ("--host 10.9.9.9", "such as 10.0.2.2"),
        ("--net 10.0.2.0", "such as 10.0.2.0/24"),
        ("--net 10.0.2.0/33", "such as 10.0.2.0/24"),
        ("--hostfwd tcp::80", "such as tcp:127.0.0.1:10022-:22"),
        ("--hostfwd tcp::80-:0", "a number from 1 to 65535"),
        ("--multicast dlna", "a service is mdns or ssdp"),
        ("--restrict --multicast mdns", "cannot be used with '--multicast <SERVICE>'"),
        ("--restrict --outbound-addr 192.0.2.7", "cannot be used with '--outbound-addr <ADDR>'"),
        ("--nat64 --restrict", "'--nat64' cannot be used with '--restrict'"),
        ("--dns-upstream 9.9.9.9 --restrict", "cannot be used with '--restrict'"),
        ("-4 --outbound-addr 2001:db8::7", "'--ipv4-only' cannot be used with '--outbound-addr 2001:db8::7'"),
        ("-6 --outbound-addr 192.0.2.7", "'--outbound-addr 192.0.2.7' without '--nat64'"),
        ("--mtu 1000 --outbound-addr 2001:db8::7", "IPv4 only: leave one of the two out, or choose an MTU"),
        ("--dns-upstream one.one", "such as 9.9.9.9"),
        ("--listen /tmp/sock", "unix:PATH"),
        ("--listn unix:/tmp/sock", "--listen"),
        ("--ready-fd 1", "--ready-fd"),
        ("--mtu 70000", "576 to 65520"),
        ("--host fd00::9", "is given with --host6, --dns6"),
        ("--dns6 10.0.2.3", "is given with --host, --dns"),
        ("--host6 one.one", "such as fd00::3"),
        ("--host6 fd01::9", "is no host's address in fd00::/64: choose one, such as fd00::2"),
        ("--dns6 fd00::2", "both the IPv6 gateway and the IPv6 DNS server"),
        ("-4 --dhcp6-start fd00::9", "'--ipv4-only' cannot be used with '--dhcp6-start <ADDR>'"),
        ("--mtu 1000 --host6 fd00::9", "too small for IPv6"),
        ("--mtu 1000 --nat64", "--mtu 1000 is too small for IPv6, which --nat64 asks for"),
        ("-6 --mtu 1000", "give 1280 or more, or leave --ipv6-only out"),
        ("-4 --nat64", "'--ipv4-only' cannot be used with '--nat64'"),
        ("--dns one.one", "such as 10.0.2.3"),
        ("--net6 fd00::/0", "such as fd00::/64"),
        ("-4 --net6 fd00::/64", "'--ipv4-only' cannot be used with '--net6 <PREFIX>'"),
        ("-6 --net 10.9.0.0/24", "'--ipv6-only' cannot be used with '--net <CIDR>'"),
        ("-6 --host 10.0.2.9", "'--ipv6-only' cannot be used with '--host <ADDR>'"),
        ("-6 --dns 10.0.2.9", "'--ipv6-only' cannot be used with '--dns <ADDR>'"),
        ("-6 --dhcp-start 10.0.2.9", "'--ipv6-only' cannot be used with '--dhcp-start <ADDR>'"),
        ("-6 --hostfwd tcp::80-10.0.2.15:80", "without IPv4 can have: choose an IPv6 address"),
        ("-4 --hostfwd tcp::80-[fd00::15]:80", "without IPv6 can have: choose an IPv4 address"),
        ("--mtu 1000 --hostfwd tcp::80-[fd00::15]:80", "or an MTU of 1280 or more"),
        ("--workers 0", "'--workers <N>': give a number from 1 to 64"),
        ("--workers 65", "a number from 1 to 64"),
        ("--workers 100000", "a number from 1 to 64"),
        ("--workers a", "a number from 1 to 64"),
        ("exec --queues 0", "'--queues <N>': give a number from 1 to 16"),
        ("exec --queues 17", "a number from 1 to 16"),
        ("exec --queues a", "a number from 1 to 16"),
        ("exec --queues -1", "a number from 1 to 16"),
        ("exec --queues 2 --workers 1", "--workers 1 gives fewer: leave it out"),
        ("--workers 1 --vhost-user a,queues=2", "--vhost-user PATH,queues=2 needs as many workers"),
        ("--vhost-user a,queue=2", "after the path come queues=N and connect"),
        ("run --queues 2 qemu", "--vhost-user"),
        ("run --vhost-user --queues 65 qemu", "a number from 1 to 64"),
        ("run --vhost-user --queues 2 --workers 1 qemu", "--workers 1 gives fewer: leave it out"),
        ("--outbound-addr eth0", "by --outbound-interface"),
        ("--outbound-addr 192.0.2.1 --outbound-addr 192.0.2.2", "leave by 192.0.2.1 already"),
        ("--outbound-addr 127.0.0.1", "nothing leaves this host by 127.0.0.1"),
        ("--outbound-addr fe80::1", "nothing leaves this host by fe80::1"),
        ("--outbound-addr 0.0.0.0", "choose one of its addresses on a network"),
        ("--outbound-addr ::ffff:127.0.0.1", "nothing leaves this host by 127.0.0.1"),
        ("bogus", "bogus"),
        ("exec --join /tmp/x --workers 3", "'--join <PATH>' cannot be used with '--workers <N>'"),
        ("run", "QEMU"),
        ("ctl remove-forward tcp::80-:80", "give the number that `usernet ctl forwards` shows"),
        ("ctl add-forward 80", "such as tcp:127.0.0.1:10022-:22"),
    ] {
        let why = config(options).expect_err(options);
        assert!(why.contains(words) && !why.contains('\n'), "{options}: {why:?}");
    }
}

#[test]
fn no_unknown_option_is_proposed_as_a_program() {
    assert_eq!(
        parse("usernet run --listen 2 -- qemu").unwrap_err(),
        "unexpected argument '--listen' found (usernet --help tells more)"
    );
}

#[test]
fn the_options_of_a_command_are_its_own() {
    let Some(Command::Exec(exec)) = parse("usernet exec -v ping -c 1 -v host").unwrap().command else {
        panic!("not exec");
    };
    assert_eq!(exec.command, ["ping", "-c", "1", "-v", "host"]);
    assert_eq!(exec.verbosity.verbose, 1);
    let Some(Command::Run(run)) = parse("usernet run --mtu 9000 -- qemu --mtu 1").unwrap().command else {
        panic!("not run");
    };
    assert_eq!(run.command, ["qemu", "--mtu", "1"]);
}

#[test]
fn help_names_every_option_and_example() {
    let mut command = Cli::command();
    let help = command.render_long_help().to_string();
    for word in ["--hostfwd", "--ready-fd", "exec", "run", "ctl", "Examples:", "Exit status"] {
        assert!(help.contains(word), "{word}");
    }
    assert!(!help.contains("exec-guest"));
}
