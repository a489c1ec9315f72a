#!/bin/sh
# Makes what a QEMU guest boots: build.sh UNPACKED OUT PROGRAM...
#
# UNPACKED is an unpacked Debian kernel package. OUT gets the files `kernel` and `initramfs`: busybox,
# a virtio network card's modules, and the PROGRAMs in /bin with the libraries that they need.
#
# The guest's second serial port is a shell that takes one script at a time: a line with a marker, the
# script, the marker again. It answers with what the script wrote, and the marker and the exit status in
# a line. Its first line is "@ready".
set -eu
unpacked=$(realpath "$1") out=$(realpath "$2")
shift 2
busybox=$(command -v busybox)
root=$out/root
mkdir -p "$root"
for folder in bin dev etc modules proc sys tmp; do mkdir -p "$root/$folder"; done

cp "$unpacked"/boot/vmlinuz-* "$out/kernel"
# In the order that they load in; what is built in has no file.
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci \
    failover net_failover virtio_net; do
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
ip link set lo up
for module in $(cat /modules/order); do insmod /modules/$module; done
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
