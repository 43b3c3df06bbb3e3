package loader

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// requirement is what the programs cannot do without. Whether a kernel has it is found by
// trying; since is for people only.
type requirement struct {
	name  string
	since string // the first Linux with it, or the option that it is built with
	probe func() error
}

var requirements = []requirement{
	{"BTF of the kernel", "CONFIG_DEBUG_INFO_BTF", func() error {
		_, err := btf.LoadKernelSpec()
		return err
	}},
	{"programs on cgroups", "CONFIG_CGROUP_BPF", func() error { return features.HaveProgramType(ebpf.CGroupSock) }},
	{"bpf_redirect_peer", "Linux 5.10", helper(ebpf.SchedCLS, asm.FnRedirectPeer)},
	{"bpf_check_mtu", "Linux 5.12", helper(ebpf.SchedCLS, asm.FnCheckMtu)},
	{"SO_NETNS_COOKIE", "Linux 5.14", func() error {
		_, err := netnsCookie()
		return err
	}},
	{"bpf_timer_init", "Linux 5.15", helper(ebpf.SchedCLS, asm.FnTimerInit)},
	{"bpf_loop", "Linux 5.17", helper(ebpf.SchedCLS, asm.FnLoop)},
	{"bpf_set_retval", "Linux 5.18", helper(ebpf.CGroupSock, asm.FnSetRetval)},
}

func helper(in ebpf.ProgramType, fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(in, fn) }
}

// nameMissing makes an ErrUnsupported say what the kernel lacks, as far as that is one of the
// requirements. It is for when something failed: a kernel that can do all is not asked.
func nameMissing(err error) error {
	if features.HaveProgramType(ebpf.SchedCLS) != nil {
		return fmt.Errorf("%w: it lacks eBPF programs for traffic control (CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT)", ErrUnsupported)
	}
	return missingOf(err)
}

// missingOf names the requirements that are not met, or returns err if all are.
func missingOf(err error) error {
	var missing []string
	for _, r := range requirements {
		if r.probe() != nil {
			missing = append(missing, fmt.Sprintf("%s (%s)", r.name, r.since))
		}
	}
	if len(missing) == 0 {
		return err
	}
	return fmt.Errorf("%w: it lacks %s", ErrUnsupported, strings.Join(missing, ", "))
}
