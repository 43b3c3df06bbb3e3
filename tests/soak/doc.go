// Package soak is ebnet under load for minutes: the random operations and kills of package
// walk, with traffic all the while, from endpoints that the walk leaves alone and to those
// that it changes. `make soak` runs it; the suite runs it for some seconds.
//
// What it looks for shows only after a while or in between: a conversation that is cut, a
// datagram that reaches the wrong endpoint, a packet that is dropped for a reason that
// nobody gave, memory that grows.
package soak
