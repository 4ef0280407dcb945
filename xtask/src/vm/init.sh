#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: mounts what a node has, runs the tests one by one, and ends the guest. Results go to the second serial
# line, the kernel's messages to the first.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mkdir -p /run/netns
ulimit -n 65536
hostname guest
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 -onlcr
while read -r module; do
    insmod "/opt/modules/$module" || echo "guest: cannot insert $module"
done </opt/modules/order
ip link set lo up
echo "guest: kernel $(uname -r)"
echo "guest: lsm $(cat /sys/kernel/security/lsm)"
cd /opt/zt/tests || echo "guest: no directory of the tests"
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
