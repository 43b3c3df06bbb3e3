// Package e2e holds the acceptance tests: the built ebnet in a lab of
// namespaces, with real packets. It has no code but tests.
package e2e
