package network

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// lockHelper is the environment variable that makes the test binary take the lock of the directory that
// it names, say "locked" and hold it.
const lockHelper = "EBNET_TEST_LOCK"

func TestMain(m *testing.M) {
	dir := os.Getenv(lockHelper)
	if dir == "" {
		os.Exit(m.Run())
	}
	if _, err := takeLock(dir, true, true, time.Minute); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("locked")
	select {}
}

// otherProcess starts a process that takes the lock, and returns what tells that it has it.
func otherProcess(t *testing.T, dir string) (cmd *exec.Cmd, locked <-chan string) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockHelper+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // may have ended
		_ = cmd.Wait()
	})
	said := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		said <- strings.TrimSpace(line)
	}()
	return cmd, said
}

func wantLocked(t *testing.T, locked <-chan string) {
	t.Helper()
	select {
	case line := <-locked:
		if line != "locked" {
			t.Fatalf("the other process says %q", line)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the other process has no lock")
	}
}

// A killed holder frees the lock at once; one that is stopped keeps it, and who waits in vain is
// told who that is.
func TestLockHolderKilledOrStopped(t *testing.T) {
	dir := t.TempDir()
	holder, locked := otherProcess(t, dir)
	wantLocked(t, locked)
	if err := holder.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, exclusive := range []bool{true, false} {
		start := time.Now()
		_, err := takeLock(dir, exclusive, exclusive, 200*time.Millisecond)
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d (", holder.Process.Pid)) || Hint(err) == "" {
			t.Errorf("exclusive %v: %v, hint %q", exclusive, err, Hint(err))
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	// One that waits is killed; that is nobody's business.
	waiter, waiting := otherProcess(t, dir)
	select {
	case line := <-waiting:
		t.Fatalf("two have the lock: %q", line)
	case <-time.After(200 * time.Millisecond):
	}
	if err := waiter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = waiter.Wait()
	_, next := otherProcess(t, dir)
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantLocked(t, next)
}

// Nouns that never stop coming do not keep a verb out.
func TestLockReadersGiveWay(t *testing.T) {
	dir := t.TempDir()
	first, err := takeLock(dir, true, true, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	var (
		wg    sync.WaitGroup
		stop  atomic.Bool
		reads atomic.Int64
	)
	defer wg.Wait()
	defer stop.Store(true)
	for range 8 {
		wg.Go(func() {
			for !stop.Load() {
				f, err := takeLock(dir, false, false, 20*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				reads.Add(1)
				time.Sleep(50 * time.Millisecond)
				_ = f.Close()
			}
		})
	}
	for range 5 {
		time.Sleep(100 * time.Millisecond)
		f, err := takeLock(dir, true, true, 10*time.Second)
		if err != nil {
			t.Fatalf("after %d reads: %v", reads.Load(), err)
		}
		_ = f.Close()
	}
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
}

// Whoever waits for a lock whose file is removed or replaced meanwhile, takes the new one; none of them fails, and
// never two have the same.
func TestLockFileReplaced(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "state")
	path := filepath.Join(dir, "lock")
	var (
		wg      sync.WaitGroup
		stop    = make(chan struct{})
		current atomic.Int64 // holders of the file that is there
		taken   atomic.Int64
	)
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				f, err := takeLock(dir, true, true, 20*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				taken.Add(1)
				if n := current.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				// As a purge does, by the one that holds the lock.
				current.Add(-1)
				_ = os.Remove(path)
				_ = os.Remove(dir)
				_ = f.Close()
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	close(stop)
	wg.Wait()
	if taken.Load() < 100 {
		t.Errorf("taken %d times only", taken.Load())
	}
}
