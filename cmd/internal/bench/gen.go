package bench

// Flags as in package loader, and the object is committed as its is.
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -go-package bench program ../../../bpf/bench.bpf.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Wno-address-of-packed-member -mcpu=v3 -nostdinc -I../../../bpf/include
