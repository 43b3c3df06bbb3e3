#!/bin/bash
# Formatting, go vet and staticcheck; says all that is wrong before it fails.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
status=0

mapfile -t dirs < <(go list -f '{{.Dir}}' ./...)
unformatted=$(gofmt -l "${dirs[@]}") || status=1
if [ -n "$unformatted" ]; then
	printf 'not formatted (make fmt):\n%s\n' "$unformatted" >&2
	status=1
fi
clang-format-16 --dry-run -Werror bpf/*.h bpf/*.c || status=1

# Each header includes what it uses; warnings are for make generate.
if command -v clang-16 >/dev/null; then
	for header in bpf/*.h; do
		clang-16 -target bpf -mcpu=v3 -nostdinc -Ibpf/include -w -fsyntax-only "$header" || status=1
	done
fi
go vet ./... || status=1
go vet -tags failpoint ./cmd/... ./loader/... || status=1
go tool staticcheck ./... || status=1
[ $status = 0 ] && echo "lint: nothing to say"
exit $status
