#!/bin/sh
# Makes what a machine boots: build.sh KERNEL OUT PROGRAM...
#
# KERNEL is a folder with a kernel's modules somewhere below and, where the kernel is a file that is booted,
# boot/vmlinuz-*. OUT gets the file `initramfs` (busybox, the modules of IPv6 and of a virtio network card,
# and the PROGRAMs in /bin with the libraries that they need) and that kernel as the file `kernel`.
#
# The guest's second serial port is a shell that takes one script at a time: a line with a marker, the
# script, the marker again. It answers with what the script wrote, and the marker and the exit status in
# a line. Its first line is "@ready". Where its input ends, so does the machine.
#
# What the kernel's command line has as NAME=VALUE is in the environment; MAC is the card's address.
set -eu
unpacked=$(realpath "$1") out=$(realpath "$2")
shift 2
busybox=$(command -v busybox)
root=$out/root
mkdir -p "$root"
for folder in bin dev etc modules proc sys tmp; do mkdir -p "$root/$folder"; done

for kernel in "$unpacked"/boot/vmlinuz-*; do
    [ ! -e "$kernel" ] || cp "$kernel" "$out/kernel"
done
# In the order that they load in; what is built in has no file.
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci \
    crc-ccitt ipv6 failover net_failover virtio_net; do
    file=$(find "$unpacked" -name "$module.ko")
    [ -z "$file" ] && continue
    cp "$file" "$root/modules"
    echo "$module.ko" >>"$root/modules/order"
done

cp "$busybox" "$root/bin/busybox"
for program; do
    cp "$program" "$root/bin"
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
done

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
[ -z "$MAC" ] || ip link set eth0 address $MAC
stty -F /dev/ttyS1 raw -echo
exec setsid sh /console </dev/ttyS1 >/dev/ttyS1 2>&1
INIT

cat >"$root/console" <<'CONSOLE'
echo "@ready"
while read -r marker; do
    script=
    while IFS= read -r line && [ "$line" != "$marker" ]; do script="$script$line
"; done
    sh -c "$script" </dev/null 2>&1
    echo "
$marker $?"
done
poweroff -f
CONSOLE

# What udhcpc runs: sets up the interface, and keeps what it was told in /lease.
cat >"$root/lease.sh" <<'LEASE'
#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip -4 address flush dev $interface
ip address add $ip/$mask dev $interface
[ -z "$mtu" ] || ip link set $interface mtu $mtu
[ -z "$router" ] || ip route add default via $router
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
for key in ip subnet mask router dns lease serverid mtu hostname domain search; do
    eval "echo $key=\$$key"
done >/lease
LEASE

chmod 755 "$root/init" "$root/lease.sh" "$root"/bin/*
cd "$root"
find . | "$busybox" cpio -o -H newc >"$out/initramfs" 2>/dev/null
