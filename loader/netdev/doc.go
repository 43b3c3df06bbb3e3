// Package netdev owns what ebnet asks of the kernel by netlink and sysctl:
// network namespaces, bridges, veth pairs, addresses, routes, uplinks, who holds
// a port, and classic tc filters.
//
// Its functions are stateless. They act on the network namespace of the calling
// thread, the "host", unless they are given another as an [NS]; code that must
// run in another namespace runs in [Do]. A device is ours iff its alias starts
// with [AliasPrefix].
//
// The package does not import cilium/ebpf: programs are given by file
// descriptor. It imports nothing else of ebnet.
package netdev
