#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Gathers what the image's program needs of Debian: `base.sh DIRECTORY`, on a Debian of the release that the program was
# built on, with package lists that are up to date. No shell comes along, and nothing else that can be run.
set -eu
export LC_ALL=C

root=$1
# The C library and what it needs, certificates, what says which Debian it is, and the licences of libgcc-s1.
licences=$(apt-cache depends libgcc-s1 | sed -n 's/.*Depends: \(gcc-[0-9]*-base\)$/\1/p' | head -n 1)
packages="base-files ca-certificates libc6 libgcc-s1 ${licences:?}"

mkdir -p "$root/var/lib/dpkg/status.d"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get -o APT::Sandbox::User=root --quiet=2 download $packages)
for file in "$work"/*.deb; do
    dpkg-deb --extract "$file" "$root"
    # By these files scanners know which packages are in an image that has no package manager.
    dpkg-deb --field "$file" >"$root/var/lib/dpkg/status.d/$(dpkg-deb --field "$file" Package)"
done

mkdir -p "$root/etc/ssl/certs"
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
printf '%s\n' 'root:x:0:0:root:/root:/sbin/nologin' 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' >"$root/etc/group"

# Scripts that have no shell, and what nobody reads here. The licences stay.
rm -rf "$root/bin" "$root/sbin" "$root/usr/bin" "$root/usr/sbin" "$root/etc/profile.d" "$root/etc/update-motd.d" \
    "$root/usr/share/ca-certificates" "$root/usr/share/doc"/*/examples "$root/usr/share/locale" "$root/usr/share/man" \
    "$root/usr/lib"/*/gconv
find "$root/usr/share/doc" -name 'changelog*' -delete
# What base-files makes of these when it is installed.
rm -rf "$root/var/run" "$root/var/lock" "$root/var/local"
ln -s /run "$root/var/run"
ln -s /run/lock "$root/var/lock"
chmod 0755 "$root"
