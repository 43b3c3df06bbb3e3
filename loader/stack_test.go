package loader

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The verifier's limits for the functions that call each other.
const (
	maxStack  = 512
	maxFrames = 8
	frameUnit = 32 // frames are rounded up to this before Linux 6.8
)

// callGraph is what functions of a program need.
type callGraph struct {
	stack map[string]int      // bytes
	calls map[string][]string // callbacks too
}

func newCallGraph(p *ebpf.ProgramSpec) callGraph {
	g := callGraph{map[string]int{}, map[string][]string{}}
	fn := p.Name
	for _, ins := range p.Instructions {
		if s := ins.Symbol(); s != "" && ins.OpCode != 0 {
			fn = s
		}
		if ins.IsFunctionReference() && ins.Reference() != "sweep_round" { // a timer's begins anew
			g.calls[fn] = append(g.calls[fn], ins.Reference())
		}
		g.stack[fn] = max(g.stack[fn], stackOffset(ins))
	}
	return g
}

// stackOffset is how far below the frame pointer an instruction reaches; of an address
// computed from any register, it may be too much.
func stackOffset(ins asm.Instruction) int {
	class := ins.OpCode.Class()
	switch {
	case class.IsStore() && ins.Dst == asm.RFP, class.IsLoad() && ins.Src == asm.RFP:
		return -int(ins.Offset)
	case class.IsALU() && ins.OpCode.ALUOp() == asm.Add && ins.Constant < 0 && ins.Constant >= -maxStack:
		return int(-ins.Constant)
	}
	return 0
}

// deepest returns the most stack, and the most frames, of any chain of calls from fn.
func (g callGraph) deepest(fn string) (stack, frames int, chain string) {
	for _, callee := range g.calls[fn] {
		s, n, c := g.deepest(callee)
		frames = max(frames, n)
		if s > stack {
			stack, chain = s, c
		}
	}
	own := (g.stack[fn] + frameUnit - 1) / frameUnit * frameUnit
	return stack + own, frames + 1, fmt.Sprintf("%s (%d) %s", fn, g.stack[fn], chain)
}

// Linux 6.1 counts more stack than the kernel that the tests run on.
func TestStackOnOldKernels(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		g := newCallGraph(p)
		for _, fn := range []string{name, "sweep_round"} {
			stack, frames, chain := g.deepest(fn)
			t.Logf("%s: %d bytes, %d frames", name, stack, frames)
			if stack > maxStack || frames > maxFrames {
				t.Errorf("%d bytes of stack in %d frames, at most %d in %d are allowed: %s", stack, frames, maxStack, maxFrames, chain)
			}
		}
	}
}
