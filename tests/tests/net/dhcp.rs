//! The DHCP clients that guests really have.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use usernet_tests::World;

const OPTIONS: [&str; 10] = [
    "--hostname",
    "guest-one",
    "--domain",
    "lab.example",
    "--dns-search",
    "one.example",
    "--dns-search",
    "two.example",
    "--mtu",
    "1400",
];

/// The guest's interface: the one of its default route.
const INTERFACE: &str = "$(ip route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/')";

#[test]
fn udhcpc_gets_all_that_was_configured() {
    let world = World::new();
    // udhcpc runs it with what it was told in the environment.
    let script = world.home().join("told.sh");
    fs::write(&script, "#!/bin/sh\necho \"$1:\"\nenv\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let told = world.exec(
        &OPTIONS,
        &format!(
            "udhcpc -i {INTERFACE} -f -n -q -T 1 -t 10 -s {} -O mtu -O search -O hostname -O domain",
            script.display()
        ),
    );
    for expected in [
        "bound:",
        "ip=10.0.2.15",
        "subnet=255.255.255.0",
        "router=10.0.2.2",
        "dns=10.0.2.3",
        "lease=86400",
        "serverid=10.0.2.2",
        "mtu=1400",
        "hostname=guest-one",
        "domain=lab.example",
        "search=one.example two.example",
    ] {
        assert!(told.ok().lines().any(|line| line == expected), "no {expected}: {told}");
    }
}

#[test]
fn dhcpcd_gets_a_lease() {
    let world = World::new();
    // Its test mode goes as far as the lease and prints it, and changes nothing. It wants to write to
    // /run all the same.
    let script = format!("mount -t tmpfs none /run && dhcpcd --test --ipv4only --timeout 20 {INTERFACE}");
    let told = world.exec(&OPTIONS, &script);
    for expected in [
        "new_ip_address='10.0.2.15'",
        "new_subnet_cidr='24'",
        "new_routers='10.0.2.2'",
        "new_domain_name_servers='10.0.2.3'",
        "new_domain_name='lab.example'",
        "new_interface_mtu='1400'",
    ] {
        let expected = expected.replace('\'', "");
        assert!(told.stdout.replace('\'', "").contains(&expected), "no {expected}: {told}");
    }
}
