// Package crash kills every verb at every fail-point, and makes every request of every
// verb fail: what is left must be repaired by `ebnet up`, or not be there. It has no code
// but tests. See package failpoint for how that is done.
package crash
