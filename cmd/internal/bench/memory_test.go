package bench

import "testing"

// TestPrivilegedFlowMemory: a conversation costs what two entries of a map and one of a queue
// can cost.
func TestPrivilegedFlowMemory(t *testing.T) {
	l := newControlLab(t)
	s, err := l.flowMemory(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if s.value < 300 || s.value > 1000 {
		t.Errorf("%.1f bytes a conversation", s.value)
	}
}
