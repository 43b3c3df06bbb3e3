package network

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel gives a shared lock to whoever asks for it while others share it, so nouns that never stop
// coming could keep a verb out for ever. Verbs that wait therefore say so, by a lock that they share on
// the first byte of the same file (it has nothing to do with the one of flock), and nouns let them go first.

// giveWay is how long a noun lets verbs go first; a verb that is stopped while it waits holds nobody up for longer.
const giveWay = 2 * time.Second

// givePeriod is how often it looks whether they still wait.
const givePeriod = 5 * time.Millisecond

func firstByte(kind int16) *unix.Flock_t {
	return &unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: 0, Len: 1}
}

// queueUp says that a verb waits for the lock, until leaveQueue. That it fails harms nothing.
func queueUp(f *os.File) { _ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, firstByte(unix.F_RDLCK)) }

func leaveQueue(f *os.File) { _ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, firstByte(unix.F_UNLCK)) }

// letGoFirst waits until no verb waits for the lock.
func letGoFirst(f *os.File, limit time.Duration) {
	for deadline := time.Now().Add(min(limit, giveWay)); time.Now().Before(deadline); time.Sleep(givePeriod) {
		waiting := firstByte(unix.F_WRLCK) // which could not be had while another shares it
		if unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, waiting) != nil || waiting.Type == unix.F_UNLCK {
			return
		}
	}
}
