package loader

// The object is built with the clang that CI pins, and committed, so that go build
// and go install need none.
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -go-package loader -type flow_kind -type flow_half -type flow_seen -type network_flag -type service_flag -type uplink_flag -type local_kind -type drop_reason -type direction -type hook -type close_reason -type event -type listener datapath ../bpf/ebnet.bpf.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Wno-address-of-packed-member -mcpu=v3 -nostdinc -I../bpf/include
