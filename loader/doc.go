// Package loader owns the eBPF datapath of one host: the programs, the maps
// and where they are pinned.
//
// Its noun is [Datapath]. [Load] puts the programs and maps into the kernel and
// pins them below a bpf file system, or replaces the programs of a running
// datapath in place; [Open] finds what is pinned there, without parsing the
// object, so that short commands stay short; [Remove] takes everything away.
// Between them callers see verbs such as [Datapath.PutEndpoint], never maps.
//
// The package does not import netlink: devices are given by interface index and
// belong to package netdev. It imports nothing else of ebnet.
package loader
