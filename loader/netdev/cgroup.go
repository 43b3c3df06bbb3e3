package netdev

import (
	"fmt"
	"os"
	"strings"
)

// CgroupMount returns where the first cgroup2 is mounted, "" if there is none.
func CgroupMount() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find a cgroup2 mount: %w", err)
	}
	return cgroupMount(string(mounts)), nil
}

// cgroupMount reads /proc/self/mounts, where blanks in paths are octal.
func cgroupMount(mounts string) string {
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[1])
		}
	}
	return ""
}
