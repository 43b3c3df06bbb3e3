// Package bench measures ebnet against what people have today, on their own machine, in
// network namespaces of its own.
//
// A run is a list of jobs, each one figure of one peer, that are run round by round so that
// whatever disturbs the machine disturbs all peers alike.
package bench
