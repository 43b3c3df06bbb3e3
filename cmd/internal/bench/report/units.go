package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// scale is one way to write the figures of a unit: 1 k packets/s is a factor of 1000 and the
// name "k packets/s".
type scale struct {
	factor float64
	name   string
}

// scales returns the ways to write a unit, from small to large. An unknown unit has one.
func scales(unit string) []scale {
	unit, per, _ := strings.Cut(unit, "/")
	if per != "" {
		per = "/" + per
	}
	switch unit {
	case "ns":
		return []scale{{1, "ns" + per}, {1e3, "µs" + per}, {1e6, "ms" + per}, {1e9, "s" + per}}
	case "s":
		return []scale{{1e-9, "ns" + per}, {1e-6, "µs" + per}, {1e-3, "ms" + per}, {1, "s" + per}}
	case "bit":
		return []scale{{1, "bit" + per}, {1e3, "kbit" + per}, {1e6, "Mbit" + per}, {1e9, "Gbit" + per}, {1e12, "Tbit" + per}}
	case "bytes":
		return []scale{{1, "B" + per}, {1 << 10, "KiB" + per}, {1 << 20, "MiB" + per}, {1 << 30, "GiB" + per}, {1 << 40, "TiB" + per}}
	}
	if per != "/s" {
		return []scale{{1, strings.TrimSpace(unit + per)}}
	}
	return []scale{{1, unit + per}, {1e3, "k " + unit + per}, {1e6, "M " + unit + per}, {1e9, "G " + unit + per}}
}

// fit returns the scale in which v is best read.
func fit(v float64, scales []scale) scale {
	v = math.Abs(round3(v))
	for i := len(scales) - 1; i > 0; i-- {
		if v >= scales[i].factor {
			return scales[i]
		}
	}
	return scales[0]
}

// Human writes a value of a unit, as Case.Unit has it, for people: 312 k packets/s,
// 18.4 Gbit/s, 3.1 µs, 1.2 GiB.
func Human(v float64, unit string) string {
	s := fit(v, scales(unit))
	return strings.TrimSpace(number(v/s.factor) + " " + s.name)
}

// number writes a figure with three digits, and more only where they stand before the point.
func number(v float64) string {
	v = round3(v)
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= 1e15 || a < 1e-4:
		return strconv.FormatFloat(v, 'g', 3, 64)
	case a >= 1000:
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// count writes a size on an axis: 60,000.
func count(v float64) string {
	if v != math.Trunc(v) || math.Abs(v) >= 1e15 {
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return thousands(strconv.FormatFloat(v, 'f', 0, 64))
}

// short writes a size where there is little room: 60k, 1M.
func short(v float64) string {
	switch {
	case v >= 1e6 && v == math.Trunc(v/1e5)*1e5:
		return strconv.FormatFloat(v/1e6, 'f', -1, 64) + "M"
	case v >= 1e3 && v == math.Trunc(v/1e2)*1e2:
		return strconv.FormatFloat(v/1e3, 'f', -1, 64) + "k"
	}
	return count(v)
}

// thousands puts a comma before every three digits.
func thousands(digits string) string {
	sign := ""
	if d, ok := strings.CutPrefix(digits, "-"); ok {
		sign, digits = "-", d
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// round3 rounds to three digits.
func round3(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'e', 2, 64), 64)
	if err != nil {
		return v
	}
	return r
}

// times writes a ratio: 1.72×.
func times(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return number(v) + "×"
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f×", v)
	}
	return fmt.Sprintf("%.2f×", v)
}

// common returns the scale in which all figures of a case can be compared at a glance. There
// is none where they are too far apart.
func (c *Case) common() (scale, bool) {
	least, most := math.Inf(1), 0.0
	for _, s := range c.Series {
		for _, p := range s.Points {
			if v := math.Abs(p.Median); p.Measured() && v > 0 {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	if most == 0 {
		return scales(c.Unit)[0], true
	}
	s := fit(least, scales(c.Unit))
	return s, round3(most/s.factor) < 10_000
}
