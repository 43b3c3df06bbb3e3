// Package walk drives the built ebnet through random operations, kills some of its
// commands at random moments, and compares what is there with a model.
//
// Its noun is [Walk]: a lab of package netlab, a [Model] of what was asked for, and a
// generator of operations. An operation is a command line with what the model expects of
// it: the exit status, and the states that the command passes through. A command that is
// killed must leave, once `ebnet up` has repaired it, one of those states, and then
// everything must be as that state says: the nouns, the state file, devices, addresses
// and routes, pins, entries of maps, reserved ports.
//
// The seed decides which operations are tried; when a kill hits, and so what is there to
// choose from afterwards, depends on time.
package walk
