#!/bin/bash
# ebnet at work, in namespaces of its own that are gone afterwards: an internet,
# a host with one uplink to it, two containers. Exits with 1 if anything that it
# shows is not as it says.
set -euo pipefail
cd "$(dirname "$0")/../.." || exit 1
PATH=$PATH:/usr/sbin:/sbin

if [ "$(id -u)" != 0 ]; then
	echo "demo: needs root, for network namespaces and eBPF" >&2
	exit 3
fi

id=ebd$$
inet=$id-internet host=$id-host web=$id-web client=$id-client
tmp=$(mktemp -d "${TMPDIR:-/tmp}/$id-XXXXXX")
servers=()
failed=0

bold='' plain='' green='' red=''
if [ -t 1 ]; then
	bold=$'\e[1m' plain=$'\e[0m' green=$'\e[32m' red=$'\e[31m'
fi

# cleanup takes away what was made so far, in whatever state that is.
cleanup() {
	local status=$?
	trap - EXIT
	trap '' INT TERM
	if [ -n "${up:-}" ]; then
		ebnet down --purge >/dev/null || status=1
	fi
	if [ ${#servers[@]} -gt 0 ]; then
		kill "${servers[@]}" 2>/dev/null || true
	fi
	for ns in "$inet" "$host" "$web" "$client"; do
		if [ -e "/run/netns/$ns" ]; then
			ip netns del "$ns" || status=1
		fi
	done
	if mountpoint -q "$tmp/bpf"; then
		umount "$tmp/bpf" || status=1
	fi
	rm -rf "$tmp"
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# inside NAMESPACE COMMAND...: not ip netns exec, which hides bpf file systems.
inside() { nsenter --net="/run/netns/$1" -- "${@:2}"; }

ebnet() {
	inside "$host" "$tmp/ebnet" --state "$tmp/state" --bpffs "$tmp/bpf/ebnet" "$@"
}

chapter() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# show WHERE COMMAND...: prints a command as a person in WHERE types it, runs it
# and keeps what it says in $said. Namespaces are shown by their short names.
show() {
	local where=$1 status=0
	shift
	printf '  %s%-8s $ %s%s\n' "$bold" "${where#"$id-"}" "${*//$id-/}" "$plain"
	if [ "$1" = ebnet ]; then
		said=$("$@" 2>&1) || status=$?
	else
		said=$(inside "$where" "$@" 2>&1) || status=$?
	fi
	# Columns of a table keep their width.
	[ -z "$said" ] || sed "s/$id-\([a-z]*\)  /\1  ${id//?/ } /g; s/$id-//g; s/^/             /" <<<"$said"
	if [ $status != 0 ]; then
		printf '             %sexit status %d%s\n' "$red" $status "$plain"
		failed=$((failed + 1))
	fi
}

# expect MEANING TEXT: TEXT is in what the last command said.
expect() {
	if [[ "$said" == *"$2"* ]]; then
		printf '  %s✔ %s%s\n' "$green" "$1" "$plain"
	else
		printf '  %s✘ %s: no "%s" there%s\n' "$red" "$1" "$2" "$plain"
		failed=$((failed + 1))
	fi
}

expect_nothing() {
	if [ -z "$said" ]; then
		printf '  %s✔ %s%s\n' "$green" "$1" "$plain"
	else
		printf '  %s✘ %s: there is%s\n' "$red" "$1" "$plain"
		failed=$((failed + 1))
	fi
}

# serve NAMESPACE NAME ADDRESS: a web server, its log in $tmp/NAME.log.
serve() {
	: >"$tmp/$2.log"
	# nsenter becomes the server, so that its id is known.
	nsenter --net="/run/netns/$1" -- "$tmp/httpd" -name "$2" -listen "$3" >>"$tmp/$2.log" 2>&1 &
	servers+=($!)
	for _ in {1..50}; do
		grep -q '^serving' "$tmp/$2.log" && return
		sleep 0.1
	done
	echo "demo: the web server $2 does not start:" >&2
	cat "$tmp/$2.log" >&2
	exit 1
}

# log NAME: the last line of a server's log, as $said.
log() {
	said=$(tail -n 1 "$tmp/$1.log")
	printf '  %slog of %s%s\n             %s\n' "$bold" "$1" "$plain" "$said"
}

chapter "Build"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$tmp/" ./cmd/ebnet ./tests/demo/httpd
"$tmp/ebnet" version | sed 's/^/  /'

chapter "The stage: an internet (198.51.100.1), a host (uplink 198.51.100.2), two empty containers"
mkdir "$tmp/bpf"
mount -t bpf bpf "$tmp/bpf"
for ns in "$inet" "$host" "$web" "$client"; do
	ip netns add "$ns"
	inside "$ns" ip link set lo up
done
inside "$inet" ip link add inet0 type veth peer name up0 netns "$host"
inside "$inet" ip address add 198.51.100.1/24 dev inet0
inside "$inet" ip link set inet0 up
inside "$host" ip address add 198.51.100.2/24 dev up0
inside "$host" ip link set up0 up
inside "$host" ip route add default via 198.51.100.1
inside "$host" sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward' # the machine's value would be inherited
serve "$inet" internet 198.51.100.1:80

chapter "The datapath: eBPF programs at the uplink, a first network"
up=yes
show "$host" ebnet up --verbose
show "$host" ebnet network ls

chapter "Two containers get a link, an address and a default route"
show "$host" ebnet connect default "$web" --name web --verbose
show "$host" ebnet connect default "$client" --name client --verbose
show "$host" ebnet endpoint ls
web_addr=$(inside "$web" ip -4 -o address show dev eth0 | sed 's/.* inet \([0-9.]*\).*/\1/') || true

chapter "A container fetches a page from the internet: MASQUERADE"
show "$client" curl -sS --max-time 5 http://198.51.100.1/
expect "the page came" "hello from internet"
log internet
expect "the server saw the host's address" "from 198.51.100.2:"

chapter "The internet fetches a page from a published port: DNAT"
serve "$web" web :80
show "$host" ebnet expose web 8080:80 --verbose
show "$inet" curl -sS --max-time 5 http://198.51.100.2:8080/
expect "the page came" "hello from web"
log web
expect "the container saw the client's own address" "from 198.51.100.1:"

chapter "Ping out, and container to container"
show "$client" ping -n -c 3 -i 0.2 -W 2 198.51.100.1
expect "no echo was lost" " 0% packet loss"
show "$client" curl -sS --max-time 5 "http://$web_addr/"
expect "neighbours talk" "hello from web"

chapter "What the kernel now knows"
show "$host" ebnet flows
expect "the page from the internet is a flow" "198.51.100.1:80"
expect "the published port is one too" "198.51.100.2:8080"
expect "and so is the ping" "icmp"

chapter "And not one packet filter rule, nor a process"
show "$host" iptables-save
expect_nothing "iptables has no rule"
show "$host" nft list ruleset
expect_nothing "nftables has no rule"
show "$host" cat /proc/sys/net/ipv4/ip_forward
expect "the host forwards for nobody else" 0
said=$(grep -l "$tmp/ebnet" /proc/[0-9]*/cmdline 2>/dev/null || true)
expect_nothing "no ebnet process is running"

chapter "Away with it"
show "$host" ebnet down --purge
up=''
said=$(find "$tmp/bpf/ebnet" -type f 2>/dev/null || true)
expect_nothing "nothing is pinned any more"
said=$(inside "$host" ip -o link | grep -v -e ' lo: ' -e ' up0@' || true)
expect_nothing "no link of ebnet's is left"

if [ $failed != 0 ]; then
	printf '\n%sdemo: %d of the steps failed%s\n' "$red" "$failed" "$plain" >&2
	exit 1
fi
printf '\n%sAll as it should be%s, in %d seconds.\n' "$green" "$plain" "$SECONDS"
