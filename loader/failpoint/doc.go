// Package failpoint marks the places where a process may be killed, or a request may
// fail, with something half done. It lets tests do both at each of them.
//
// [Reach] and [Do] stand before every request that changes something outside of the
// process; what follows the last one is the next one's place. In a normal build they do
// nothing, and are compiled away. With the build tag failpoint they obey EBNET_FAILPOINT,
// a list of
//
//	list:FILE    append the name of each place to FILE, a line each
//	fail:N       the N-th place, from 1, returns an error
//	kill:N       the process ends itself there, as `kill -9` would
//
// separated by commas, so that fail:3,kill:5 kills while what failed is being undone.
package failpoint
