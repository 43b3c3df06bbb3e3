// Package ipam hands out the addresses of networks.
//
// Its noun is [Pool]: the addresses of one subnet, one bit each, with those
// that are never given (network, broadcast, gateway, auxiliary addresses) and a
// window of the subnet that [Pool.Acquire] draws from. Allocation is next-fit,
// so a freed address rests until the others have been round once.
//
// The bits lie in chunks of 4096. Above them is a tree of chunks of the same
// shape, in which a set bit says that the chunk below is full. A search
// therefore reads at most four chunks a level (one level for a /20, two for a
// /8, six for a /64), however full the pool is, and a chunk without a lease is
// not stored, so a /64 costs what is allocated in it.
//
// A pool decides, a [Store] remembers. [NewBoltStore] works inside the caller's
// transaction, so that a lease and the caller's record of it commit together
// and two processes never give one address twice.
//
// [Subnets] picks a subnet from the default pools.
//
// The package imports nothing of ebnet; only bolt.go imports bbolt.
package ipam
