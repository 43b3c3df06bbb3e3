package netdev

import "testing"

func TestCgroupMount(t *testing.T) {
	const mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /a\\040b cgroup2 rw 0 0\ncgroup2 /c cgroup2 rw 0 0\n"
	if got := cgroupMount(mounts); got != "/a b" {
		t.Errorf("%q", got)
	}
	if got := cgroupMount("proc /proc proc rw 0 0\n"); got != "" {
		t.Errorf("%q", got)
	}
}
