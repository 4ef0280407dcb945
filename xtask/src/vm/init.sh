#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: mounts what a node has, runs the tests one by one, and ends the guest. Results go to the second serial
# line, the kernel's messages to the first.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
# The results' line is a device.
mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 -onlcr
# What begins with `guest: cannot` fails the run.
mounts() {
    mount -t "$1" "$1" "$2" || echo "guest: cannot mount $1 at $2"
}
mounts proc /proc
mounts sysfs /sys
mounts tmpfs /tmp
mounts tmpfs /run
mounts cgroup2 /sys/fs/cgroup
mounts bpf /sys/fs/bpf
mounts securityfs /sys/kernel/security
mkdir -p /run/netns
ulimit -n 65536 || echo "guest: cannot open many files"
hostname guest
while read -r module; do
    insmod "/opt/modules/$module" || echo "guest: cannot insert $module"
done </opt/modules/order
ip link set lo up || echo "guest: cannot set up the loopback"
echo "guest: kernel $(uname -r)"
echo "guest: lsm $(cat /sys/kernel/security/lsm)"
cd /opt/zt/tests || echo "guest: cannot find the directory of the tests"
# Each line of the list: a binary, the seconds that it may take, and its arguments.
while read -r binary seconds arguments; do
    echo "guest: begin $binary"
    # shellcheck disable=SC2086
    timeout -s KILL "$seconds" "/opt/zt/target/debug/deps/$binary" $arguments
    echo "guest: end $binary $?"
done </opt/zt/list
echo "guest: done"
sync
reboot -f
