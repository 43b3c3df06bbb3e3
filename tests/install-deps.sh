#!/bin/bash
# Installs the Debian packages that a task needs and that are missing:
#
#   tests/install-deps.sh build|generate|lint|test|demo...
#
# Without root it says what is missing instead and fails.
set -euo pipefail

# What each task calls, as COMMAND:PACKAGE.
declare -A needs=(
	[build]="git:git make:make"
	[generate]="clang-16:clang-16 llvm-strip-16:llvm-16"
	[lint]="clang-format-16:clang-format-16"
	[test]="ip:iproute2 tc:iproute2 iptables:iptables nft:nftables ethtool:ethtool ping:iputils-ping traceroute:traceroute strace:strace setpriv:util-linux mtr:mtr-tiny dockerd:docker.io busybox:busybox-static chromium:chromium /usr/lib/cni/bridge:containernetworking-plugins"
	[kernels]="qemu-system-x86_64:qemu-system-x86 cpio:cpio busybox:busybox-static depmod:kmod xz:xz-utils ip:iproute2 tc:iproute2 iptables:iptables nft:nftables ethtool:ethtool ping:iputils-ping sysctl:procps nsenter:util-linux"
	[demo]="ip:iproute2 iptables-save:iptables nft:nftables ping:iputils-ping curl:curl"
)

# Administration commands are not on every user's path.
PATH=$PATH:/usr/sbin:/sbin

missing=()
for task in "$@"; do
	for need in ${needs[$task]:?no such task: $task}; do
		command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]} (Debian packages). As root: apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Tests start the services that they need, in namespaces of their own; here none shall start.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 0755 /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
install() { apt-get install -y -q --no-install-recommends "${missing[@]}"; }
# The lists may be missing, or too old to find what they name.
{ install || { apt-get update -q && install; }; } >&2
