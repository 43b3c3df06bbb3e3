package netlab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Variant is another build of ebnet from the same source. What differs is laid over the source for
// the compiler, so that nothing of it is in the product.
type Variant struct {
	Name string // of the file, and what tells its object from others

	ABI  int               // the layout's number; 0: as it is
	BPF  map[string]string // replacements in the headers of bpf/, which are then compiled (needs clang)
	More map[string]string // further Go files, by their paths in the module
}

// Build builds the variant, once for all tests, and returns the path of the binary. Without a compiler that
// it needs the test is skipped.
func (v Variant) Build(tb testing.TB) string {
	tb.Helper()
	need(tb)
	b := &variantBuild{tb: tb, root: v.root(tb), dir: filepath.Join(builds, v.Name), overlay: make(map[string]string)}
	binary := filepath.Join(b.dir, "ebnet")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	if v.ABI != 0 {
		b.edit("loader/pin.go", map[string]string{"const ABI = 2\n": fmt.Sprintf("const ABI = %d\n", v.ABI)})
	}
	if len(v.BPF) > 0 {
		b.compile(v.BPF)
	} else {
		// What follows an ELF file's contents is no part of them.
		object := b.read("loader/datapath_bpfel.o")
		b.lay("loader/datapath_bpfel.o", object+v.Name)
	}
	for path, text := range v.More {
		b.lay(path, text)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": b.overlay})
	if err != nil {
		tb.Fatal(err)
	}
	list := filepath.Join(b.dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		tb.Fatal(err)
	}
	b.run(b.root, "go", "build", "-buildvcs=false", "-ldflags=-s -w", "-overlay", list, "-o", binary, "./cmd/ebnet")
	return binary
}

// root is the directory of the module.
func (v Variant) root(tb testing.TB) string {
	tb.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		tb.Skipf("another build needs the source: %v", err)
	}
	return strings.TrimSpace(string(out))
}

type variantBuild struct {
	tb      testing.TB
	root    string
	dir     string            // of what is made
	overlay map[string]string // files of the source → what is compiled instead
}

func (b *variantBuild) read(path string) string {
	b.tb.Helper()
	text, err := os.ReadFile(filepath.Join(b.root, path))
	if err != nil {
		b.tb.Fatal(err)
	}
	return string(text)
}

// lay has text compiled in place of a file of the module.
func (b *variantBuild) lay(path, text string) {
	b.tb.Helper()
	place := filepath.Join(b.dir, strings.ReplaceAll(path, "/", "-"))
	if err := os.WriteFile(place, []byte(text), 0o600); err != nil {
		b.tb.Fatal(err)
	}
	b.overlay[filepath.Join(b.root, path)] = place
}

// replace does all replacements, of which each must have something to replace somewhere in texts.
func (b *variantBuild) replace(texts map[string]string, replacements map[string]string) {
	b.tb.Helper()
	for old, text := range replacements {
		found := false
		for path, before := range texts {
			if strings.Contains(before, old) {
				found = true
				texts[path] = strings.Replace(before, old, text, 1)
			}
		}
		if !found {
			b.tb.Fatalf("there is no %q to replace", old)
		}
	}
}

func (b *variantBuild) edit(path string, replacements map[string]string) {
	b.tb.Helper()
	texts := map[string]string{path: b.read(path)}
	b.replace(texts, replacements)
	b.lay(path, texts[path])
}

// compile compiles the programs with other headers, in the way that loader/gen.go says.
func (b *variantBuild) compile(replacements map[string]string) {
	b.tb.Helper()
	line := regexp.MustCompile(`(?m)^//go:generate go tool bpf2go .*$`).FindString(b.read("loader/gen.go"))
	words := strings.Fields(line)
	if len(words) == 0 {
		b.tb.Fatal("loader/gen.go does not say how the programs are compiled")
	}
	for i, w := range words[:len(words)-1] {
		if w != "-cc" && w != "-strip" {
			continue
		}
		if _, err := exec.LookPath(words[i+1]); err != nil {
			b.tb.Skipf("%s is not installed: run tests/install-deps.sh generate", words[i+1])
		}
	}
	src := filepath.Join(b.dir, "bpf")
	if err := os.CopyFS(src, os.DirFS(filepath.Join(b.root, "bpf"))); err != nil {
		b.tb.Fatal(err)
	}
	headers := make(map[string]string)
	names, _ := filepath.Glob(filepath.Join(b.root, "bpf", "*.h"))
	for _, name := range names {
		headers[filepath.Base(name)] = b.read(filepath.Join("bpf", filepath.Base(name)))
	}
	b.replace(headers, replacements)
	for name, text := range headers {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o600); err != nil {
			b.tb.Fatal(err)
		}
	}
	out := filepath.Join(b.dir, "loader")
	if err := os.Mkdir(out, 0o700); err != nil {
		b.tb.Fatal(err)
	}
	args := append([]string{"go", "tool", "bpf2go", "-output-dir", out}, words[4:]...)
	for i, w := range args {
		args[i] = strings.Replace(w, "../bpf", src, 1)
	}
	b.run(filepath.Join(b.root, "loader"), args...)
	for _, name := range []string{"datapath_bpfel.go", "datapath_bpfel.o"} {
		b.overlay[filepath.Join(b.root, "loader", name)] = filepath.Join(out, name)
	}
}

func (b *variantBuild) run(dir string, args ...string) {
	b.tb.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.tb.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
