#!/bin/bash
# Runs ebnet and the core of its tests on other kernels than the machine's: Debian's cloud
# kernels, each in a virtual machine that has no disk and no network, only what this script
# packs (an initramfs whose /init is tests/kernels/init):
#
#   tests/kernels/run.sh [SUITE...]
#
# The processor is emulated, so it runs wherever qemu does. Kernels come from Debian's
# archive by apt, with sources and lists of this script's own, and are kept in ~/.cache.
# What cannot be had or run here is reported as SKIP; all else that goes wrong as FAIL, with
# exit status 1.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin

# Suites of Debian, and what is expected of their newest kernel: that ebnet works, or that
# it is refused for features that are missing.
declare -A expected=([bookworm]=works [bookworm-backports]=works [bullseye]=refused)
suites=(bookworm bookworm-backports bullseye)

# The core. Of the programs alone: that all load within their budget, masquerade, published
# ports, ICMP errors, expiry, fragments, what is told to listeners. Of ebnet as a whole, with
# real packets: masquerade, published ports from outside and from the host's own sockets, ports
# that its sockets cannot have, taking all away and bringing it back, and watching it.
datapath=(VerifierBudget LoadAgain ProgramOrder Spoofing Masquerade SourcePortCollision Expiry Confirmation
	EndpointRemoval PublishedTCP PublishedOnAnyAddressIsLocal Unpublish Hairpin ErrorAboutMasqueraded
	ErrorAboutNothing ErrorByEndpoint ErrorByHost Fragments HostSocketConflict Timeouts
	DropsOfEndpoints FlowEvents ListenerDies)
e2e=(Outbound Publish FromHost Bind DownUp Monitor)
# Megabytes by way of an emulated processor take minutes, and the slow path is seen enough in
# the others.
e2e_skip='//offloads|(FromHost|Bind|DownUp|Monitor)/fast-path=off'

guest_limit=270 # seconds
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ebnet-kernels
tmp=$(mktemp -d "${TMPDIR:-/tmp}/ebk$$-XXXXXX")
guest=
cleanup() {
	[ -z "$guest" ] || kill "$guest" 2>/dev/null
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# pattern NAME...: what go test -run takes for these tests and no others.
pattern() {
	local IFS='|'
	echo "^TestPrivileged($*)\$"
}

failed=()
skipped=()
skip() { skipped+=("kernels: $*"); }
fail() {
	failed+=("kernels: $*")
	echo "FAIL  $*"
}

# finish says what was not run and what failed, and exits.
finish() {
	printf '\n'
	[ ${#skipped[@]} = 0 ] || printf 'SKIP  %s\n' "${skipped[@]}"
	[ ${#failed[@]} = 0 ] || printf 'FAIL  %s\n' "${failed[@]}"
	printf 'kernels: %d ran, %d failed, %d skipped, in %d s\n' "$ran" ${#failed[@]} ${#skipped[@]} "$SECONDS"
	[ ${#failed[@]} = 0 ]
	exit
}

# --- Kernels -----------------------------------------------------------------------------

# apt SUITE PROGRAM ARGUMENT...: apt with a suite alone, without the machine's own sources.
apt() {
	local dir=$cache/$1 program=$2
	shift 2
	"$program" -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/apt" -o APT::Sandbox::User=root \
		-o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
		-o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o APT::Update::Error-Mode=any "$@"
}

# find_package SUITE: the newest kernel package of the suite, as NAME VERSION.
find_package() {
	local dir=$cache/$1 archive suite=$1 name
	local signed='[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
	mkdir -p "$dir/lists/partial" "$dir/apt/archives/partial"
	archive=http://deb.debian.org/debian
	{
		echo "deb $signed $archive $suite main"
		[[ $suite == *-* ]] || echo "deb $signed $archive-security $suite-security main"
	} >"$dir/sources.list"
	# Once a day is often enough.
	if [ -z "$(find "$dir/lists/updated" -mtime -1 2>/dev/null)" ]; then
		apt "$suite" apt-get update -qq >"$tmp/apt.log" 2>&1 || return 1
		touch "$dir/lists/updated"
	fi
	# What linux-image-cloud-amd64 depends on is the newest one.
	name=$(apt "$suite" apt-cache depends linux-image-cloud-amd64 2>"$tmp/apt.log" |
		sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
	[ -n "$name" ] || return 1
	echo "$name $(apt "$suite" apt-cache show --no-all-versions "$name" | sed -n 's/^Version: //p' | head -n 1)"
}

# fetch SUITE: the directory of the suite's kernel (vmlinuz, modules.cpio, release), in the
# cache. Without Debian's archive it is the one that is there already, if there is one.
fetch() {
	local suite=$1 package dir
	if ! package=$(find_package "$suite"); then
		for dir in "$cache/$suite"/linux-image-*; do
			[ -e "$dir/release" ] || continue
			echo "kernels: $suite: Debian's archive does not answer; the kernel is that of the last run" >&2
			echo "$dir"
			return
		done
		return 1
	fi
	read -r package version <<<"$package"
	dir=$cache/$suite/${package}_$version
	if [ ! -e "$dir/release" ]; then
		rm -rf "$cache/$suite"/linux-image-* # and those before it
		mkdir -p "$tmp/deb" "$dir"
		(cd "$tmp/deb" && apt "$suite" apt-get download -qq "$package=$version") >"$tmp/apt.log" 2>&1 || return 1
		unpack "$tmp/deb" "$dir" >&2 || return 1
		rm -rf "$tmp/deb"
	fi
	echo "$dir"
}

# unpack FROM DIR: the kernel and the modules for networks out of the package in FROM.
unpack() {
	local from=$1 dir=$2 release modules
	dpkg -x "$from"/*.deb "$from/files" || return 1
	release=$(ls "$from/files/lib/modules")
	modules=$from/root/usr/lib/modules/$release
	mkdir -p "$modules/kernel/drivers"
	(
		cd "$from/files/lib/modules/$release" || exit 1
		cp modules.builtin* modules.order "$modules/"
		cp -r --parents kernel/net kernel/lib kernel/crypto "$modules/"
		find kernel/drivers/net -maxdepth 1 -name '*.ko*' -exec cp --parents {} "$modules/" \;
	) || return 1
	find "$modules" -name '*.ko.xz' -exec xz -d {} +
	ln -s usr/lib "$from/root/lib" # where depmod looks
	# It misses a file in packages of older kernels that only matters to modinfo.
	depmod -b "$from/root" "$release" 2> >(grep -v modules.builtin.modinfo >&2) || return 1
	rm "$from/root/lib"
	pack "$from/root" "$dir/modules.cpio" || return 1
	cp "$from/files/boot/vmlinuz-$release" "$dir/vmlinuz" || return 1
	echo "$release" >"$dir/release"
}

# --- What runs in them -------------------------------------------------------------------

# pack ROOT FILE: a directory as an archive that the kernel unpacks. It is not compressed:
# an emulated processor would take longer to unpack it than a real one to read it.
pack() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) >"$2"; }

# add ROOT FILE...: files of the machine, programs with the libraries that they need.
add() {
	local root=$1 file library
	shift
	for file in "$@"; do
		cp -rL --parents "$file" "$root" || return 1
		for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
			[ -e "$root$library" ] || cp -L --parents "$library" "$root" || return 1
		done
	done
}

# userland FILE: busybox, ebnet, the tests, and the tools that the tests call.
userland() {
	local root=$tmp/root dir
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{busybox,dev,etc,proc,run,sys,tmp,var/lib}
	for dir in bin sbin lib lib64; do
		ln -s usr/$dir "$root/$dir"
	done
	CGO_ENABLED=0 go build -buildvcs=false -o "$root/usr/bin/ebnet" ./cmd/ebnet &&
		CGO_ENABLED=0 go test -c -o "$root/usr/bin/datapath.test" ./tests/datapath &&
		CGO_ENABLED=0 go test -c -o "$root/usr/bin/e2e.test" ./tests/e2e || return 1
	has_tests "$root/usr/bin/datapath.test" "${datapath[@]}" && has_tests "$root/usr/bin/e2e.test" "${e2e[@]}" || return 1
	for tool in busybox ip tc nft {iptables,ip6tables}{,-save} nstat ethtool ping sysctl nsenter; do
		add "$root" "$(command -v $tool)" || return 1
	done
	add "$root" /usr/lib/x86_64-linux-gnu/xtables/*.so
	cp tests/kernels/init "$root/init"
	ln -sf "$(command -v busybox)" "$root/usr/bin/sh"
	printf 'root:x:0:0::/:/bin/sh\n' >"$root/etc/passwd"
	pack "$root" "$1"
}

# has_tests BINARY NAME...: a test that got another name would be missed by nobody else.
has_tests() {
	local binary=$1 list name
	shift
	list=$(EBNET_BIN=$tmp/root/usr/bin/ebnet "$binary" -test.list .) || return 1
	for name in "$@"; do
		if ! grep -qx "TestPrivileged$name" <<<"$list"; then
			echo "there is no test $name in $(basename "$binary")" >&2
			return 1
		fi
	done
}

# Without cmpxchg16b: with it, qemu 7.2 now and then loads a flags register that no processor
# could have (bit 3 set), and the guest's kernel dies of a double fault there.
#
# boot DIR EXPECTED: the kernel of the directory with all that. What the guest says is in
# $tmp/said, what its kernel says in $tmp/console; copies for people stay in the cache.
boot() {
	cat "$1/modules.cpio" "$tmp/userland.cpio" >"$tmp/initramfs"
	: >"$tmp/said"
	: >"$tmp/console"
	timeout --kill-after=5 "$guest_limit" qemu-system-x86_64 -accel tcg -cpu max,-cx16 -smp 2 -m 2G \
		-nodefaults -no-user-config -display none -no-reboot \
		-kernel "$1/vmlinuz" -initrd "$tmp/initramfs" -serial "file:$tmp/console" -serial "file:$tmp/said" \
		-append "console=ttyS0 panic=-1 loglevel=6 ebnet.expect=$2 ebnet.e2e_skip=$e2e_skip \
ebnet.datapath=$(pattern "${datapath[@]}") ebnet.e2e=$(pattern "${e2e[@]}")" &
	guest=$!
	wait "$guest"
	local status=$?
	guest=
	sed -i 's/\r$//' "$tmp/said"
	cp "$tmp/said" "${1%/*}/guest.log"
	cp "$tmp/console" "${1%/*}/console.log"
	return $status
}

# --- What they said ----------------------------------------------------------------------

# part NAME: what the guest said between the marks of a part.
part() { sed -n "/^@@ begin $1\$/,/^@@ end $1 /{/^@@/d;p}" "$tmp/said"; }

# passed NAME: the tests of a part that passed, one line.
passed() { part "$1" | sed -n 's/^.*--- PASS: TestPrivileged\([^/ ]*\) .*/\1/p' | sort -u | paste -s -d ' '; }

# ended NAME: the exit status of a part, nothing if it did not end.
ended() { sed -n "s/^@@ end $1 //p" "$tmp/said"; }

# judge SUITE RELEASE EXPECTED: prints what the guest did, counts what failed.
judge() {
	local suite=$1 release=$2 wanted=$3 parts=(ebnet) name
	part ebnet | sed 's/^/  /'
	if [ "$wanted" = works ]; then
		parts+=(datapath e2e)
		for name in datapath e2e; do
			part "$name" | go tool test2json -t -p "tests/$name on $release"
		done | go run ./tests/report | tee "$tmp/report" || fail "$release: tests"
		for name in datapath e2e; do
			printf '  %s passed: %s\n' "$name" "$(passed "$name")"
		done
		while read -r line; do
			skip "$line"
		done < <(sed -n '/^SKIP  tests\//{N;s/\n */: /;s/^SKIP  tests\///p}' "$tmp/report")
	fi
	for name in "${parts[@]}"; do
		case $(ended "$name") in
		0) ;;
		'')
			fail "$release: $name did not end; the last of the guest and of its kernel:"
			tail -n 15 "$tmp/said"
			tail -n 40 "$tmp/console"
			return
			;;
		*) fail "$release: $name" ;;
		esac
	done
	if grep -E 'BUG:|Oops|WARNING:|Call Trace' "$tmp/console"; then
		fail "$release: its kernel complained, see above"
	fi
}

ran=0
[ $# = 0 ] || suites=("$@")
if [ "$(uname -m)" != x86_64 ]; then
	skip "needs an x86-64 machine, for its binaries run in the guests"
	finish
fi
if ! tests/install-deps.sh kernels; then
	skip "the packages above are missing"
	finish
fi
if ! userland "$tmp/userland.cpio"; then
	fail "build what runs in the guests"
	finish
fi
for suite in "${suites[@]}"; do
	if ! dir=$(fetch "$suite"); then
		skip "$suite: no kernel to be had from Debian's archive: $(tail -n 1 "$tmp/apt.log")"
		continue
	fi
	release=$(<"$dir/release")
	start=$SECONDS
	printf '\n== %s (%s), where ebnet %s\n' "$release" "$suite" "${expected[$suite]/works/should work}"
	boot "$dir" "${expected[$suite]}" || fail "$release: qemu ended with status $? (124: after $guest_limit s)"
	judge "$suite" "$release" "${expected[$suite]}"
	ran=$((ran + 1))
	printf '== %s took %d s\n' "$release" $((SECONDS - start))
done
finish
