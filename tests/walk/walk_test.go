package walk

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/ebnet/ebnet/tests/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// operations is how many of them TestPrivilegedWalk tries.
const operations = 1000

// TestPrivilegedWalk: random operations with random kills end in the model's state, in
// which nothing is lost and nothing is left over.
func TestPrivilegedWalk(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("EBNET_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("EBNET_SEED: %v", err)
		}
	}
	t.Logf("EBNET_SEED=%d", seed)
	begin := time.Now()
	w := New(t, netlab.New(t), Options{Seed: seed, Kills: 0.2})
	for i := range operations {
		w.Step()
		if i%50 == 49 {
			w.Check()
			w.Up()
			w.Check()
			w.Probe()
		}
	}
	w.Finish()
	t.Logf("%d operations in %v: %+v", operations, time.Since(begin).Round(time.Second), w.Counts)
	if w.Counts.Kills < operations/20 {
		t.Errorf("%d commands were killed, want more", w.Counts.Kills)
	}
}
