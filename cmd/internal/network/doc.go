// Package network is the product: what a command means, in whole sentences.
//
// Its noun is [Host], the network namespace ebnet runs in with its state file
// and its datapath. [Open] takes the state's lock; every verb then goes the same
// way: check what was asked for, record the intent, apply it step by step, mark
// it applied. A step that fails is undone together with those before it, and the
// record is removed, so that a verb that fails leaves nothing behind. What a
// killed command left half done is recorded as pending and undone by the next
// [Host.Up].
//
// The state file is the truth and the kernel is derived from it: Up compares
// both and repairs the kernel.
//
// Errors are of type [*Error] or wrap one; [ExitCode] and [Hint] say what a
// command makes of them.
//
// The package brings loader (eBPF), loader/netdev (netlink) and ipam together;
// they do not know each other. It is imported by commands only.
package network
