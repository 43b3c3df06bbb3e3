#!/bin/bash
# Fails unless the committed eBPF objects and their Go files are what the pinned
# compiler makes of bpf/, and the chart library of reports what npm's pinned
# packages make. The work tree is not touched.
set -euo pipefail
cd "$(dirname "$0")/.." || exit 1

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir -p "$copy/cmd/internal"
cp -r go.mod go.sum bpf loader "$copy"
cp -r cmd/internal/bench "$copy/cmd/internal"
generated=(loader/datapath_bpfel.{go,o} cmd/internal/bench/program_bpfel.{go,o})
(cd "$copy" && rm -f "${generated[@]}" && go generate ./loader ./cmd/internal/bench)

status=0
for file in "${generated[@]}"; do
	if ! cmp "$file" "$copy/$file"; then
		status=1
		diff -u "$file" "$copy/$file" | head -40 || true
	fi
done
# npm is large and is not installed for this alone; a test holds
# the library to its checksum in any case.
if command -v npm >/dev/null; then
	cmd/internal/bench/report/chart/build.sh --check || status=1
else
	echo "npm is not installed: the chart library is not built again" >&2
fi
if [ $status = 0 ]; then
	echo "generated files match their source"
else
	echo "generated files differ from their source: run make generate" >&2
fi
exit $status
