// Package netlab is a small network of real namespaces in which the built
// ebnet binary is driven as a person would drive it.
//
// Its noun is [Lab]: an internet, a [Host] with one uplink to it, and
// containers. Everything in it is a [Node], a network namespace that commands
// can be run in and sockets opened in. A Lab cleans up after itself and fails
// the test if ebnet left anything behind.
//
//	internet 198.51.100.1/24 ── srv0 ══ up0 ── host 198.51.100.2/24, 198.51.100.3/24
//	                                             └─ containers, connected by ebnet
//
// Helpers that take a testing.TB fail the test themselves; those that do not
// return an error, for what a test expects not to work. The topology is made
// with ip(8) and not with package netdev, so that the lab does not share the
// faults of what it tests.
package netlab
