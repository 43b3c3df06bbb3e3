#!/bin/bash
# Fails unless the committed eBPF object and its Go file are what the pinned
# compiler makes of bpf/. The work tree is not touched.
set -euo pipefail
cd "$(dirname "$0")/.." || exit 1

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r go.mod go.sum bpf loader "$copy"
rm -f "$copy"/loader/datapath_bpfel.*
(cd "$copy" && go generate ./loader)

status=0
for file in loader/datapath_bpfel.go loader/datapath_bpfel.o; do
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
