#!/bin/bash
# Fails unless the committed eBPF objects and their Go files are what the pinned
# compiler makes of bpf/. The work tree is not touched.
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
if [ $status = 0 ]; then
	echo "generated files match their source"
else
	echo "generated files differ from their source: run make generate" >&2
fi
exit $status
