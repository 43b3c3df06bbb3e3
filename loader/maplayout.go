package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// mapInfo is the beginning of the kernel's struct bpf_map_info, which has what the ebpf
// library does not tell.
type mapInfo struct {
	_         [6]uint32
	_         [unix.BPF_OBJ_NAME_LEN]byte
	_         [2]uint32
	_         [2]uint64
	BTF       uint32
	KeyType   btf.TypeID
	ValueType btf.TypeID
	_         uint32
}

// typesOf returns the types of a map's keys and values as the kernel keeps them; nil if it
// has none.
func typesOf(m *ebpf.Map) (key, value btf.Type, err error) {
	info := new(mapInfo)
	var pinner runtime.Pinner // the kernel is given its address as a number
	pinner.Pin(info)
	defer pinner.Unpin()
	attr := struct { // of BPF_OBJ_GET_INFO_BY_FD
		fd, size uint32
		info     uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return nil, nil, fmt.Errorf("inspect a map: %w", permission(errno))
	}
	if info.BTF == 0 {
		return nil, nil, nil
	}
	h, err := btf.NewHandleFromID(btf.ID(info.BTF))
	if err != nil {
		return nil, nil, fmt.Errorf("read the types of a map: %w", explain(err))
	}
	defer func() { _ = h.Close() }()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("read the types of a map: %w", err)
	}
	if key, err = spec.TypeByID(info.KeyType); err == nil {
		value, err = spec.TypeByID(info.ValueType)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the types of a map: %w", err)
	}
	return key, value, nil
}

// sameLayout reports whether a pinned map is what spec describes, so that programs of both
// may use it at the same time. A map without types is not taken for one: sizes alone prove
// nothing.
func sameLayout(m *ebpf.Map, spec *ebpf.MapSpec) (bool, error) {
	if m.Type() != spec.Type || m.KeySize() != spec.KeySize || m.ValueSize() != spec.ValueSize ||
		m.MaxEntries() != spec.MaxEntries || m.Flags() != spec.Flags || spec.Key == nil || spec.Value == nil {
		return false, nil
	}
	key, value, err := typesOf(m)
	if err != nil || key == nil || value == nil {
		return false, err
	}
	return describeType(key) == describeType(spec.Key) && describeType(value) == describeType(spec.Value), nil
}

// describeType spells a type out: what lies where, by which name. Values of enums are left out, since
// new ones change no layout.
func describeType(t btf.Type) string {
	var b strings.Builder
	spell(&b, t)
	return b.String()
}

func spell(b *strings.Builder, t btf.Type) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		fmt.Fprintf(b, "int%d", t.Size)
	case *btf.Enum:
		fmt.Fprintf(b, "enum%d", t.Size)
	case *btf.Array:
		fmt.Fprintf(b, "[%d]", t.Nelems)
		spell(b, t.Type)
	case *btf.Struct:
		spellMembers(b, t.Size, t.Members)
	case *btf.Union:
		spellMembers(b, t.Size, t.Members)
	default:
		fmt.Fprintf(b, "%T %s", t, t.TypeName())
	}
}

func spellMembers(b *strings.Builder, size uint32, members []btf.Member) {
	fmt.Fprintf(b, "%d{", size)
	for _, m := range members {
		fmt.Fprintf(b, "%s@%d ", m.Name, m.Offset)
		spell(b, m.Type)
		b.WriteByte(';')
	}
	b.WriteByte('}')
}

// pinnedMap opens a map of a layout; nil if it has none of that name.
func (l layout) pinnedMap(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(l.mapPin(name), nil)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", l.mapPin(name), explain(err))
	}
	return m, nil
}
