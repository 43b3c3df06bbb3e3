package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version is set by the Makefile (-ldflags "-X main.version=…"); without it the
// build information has the module's version.
var version = ""

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the version",
		Description: describe("With the commit it was built from, where that is known.", "ebnet version", "ebnet version -o json"),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c, 0, 0); err != nil {
				return err
			}
			info := readVersion()
			return p.print(view{info, lines(info.line())})
		},
	}
}

type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // "" where it is not known
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readVersion() versionInfo {
	info := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if ok {
		if info.Version == "" {
			info.Version = build.Main.Version
		}
		for _, s := range build.Settings {
			switch s.Key {
			case "vcs.revision":
				info.Commit = s.Value
			case "vcs.modified":
				info.Modified = s.Value == "true"
			}
		}
	}
	if info.Version == "" {
		info.Version = "(devel)"
	}
	return info
}

func (v versionInfo) line() string {
	commit := ""
	if v.Commit != "" {
		commit = " " + v.Commit[:min(12, len(v.Commit))]
		if v.Modified {
			commit += " (modified)"
		}
	}
	return fmt.Sprintf("ebnet %s%s %s %s", v.Version, commit, v.Go, v.Platform)
}
