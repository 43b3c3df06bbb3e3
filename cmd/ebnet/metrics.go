package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebnet/ebnet/cmd/internal/network"
	"github.com/ebnet/ebnet/cmd/internal/trusted"
)

func (p *program) metricsCommand() *cli.Command {
	return &cli.Command{
		Name:  "metrics",
		Usage: "print metrics for Prometheus, write them to a file or serve them",
		Description: describe("In Prometheus' text format: on stdout, to a file for node_exporter's textfile collector, which is\n"+
			"replaced as a whole, or by HTTP under /metrics for as long as the command runs.",
			"ebnet metrics",
			"ebnet metrics --output-file /var/lib/node_exporter/ebnet.prom",
			"ebnet metrics --listen 127.0.0.1:9790"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output-file", Usage: "replace `PATH`"},
			&cli.StringFlag{Name: "listen", Usage: "serve at `ADDR`, HOST:PORT, until interrupted"},
		},
		Action: p.metrics,
	}
}

func (p *program) metrics(c *cli.Context) error {
	if _, err := arguments(c, 0, 0); err != nil {
		return err
	}
	file, addr := c.String("output-file"), c.String("listen")
	switch {
	case file != "" && addr != "":
		return usage("--listen", "goes not with --output-file", "")
	case c.IsSet("output-file") && file == "", c.IsSet("listen") && addr == "":
		return usage("metrics", "an empty value", "see ebnet metrics --help")
	case addr != "":
		return p.serveMetrics(c, addr)
	case file != "":
		all, err := p.measure(c)
		if err == nil {
			err = replaceFile(file, exposition(all))
		}
		return err
	}
	all, err := p.measure(c)
	if err != nil {
		return err
	}
	return p.print(view{listOf(all), func(w io.Writer) { _, _ = w.Write(exposition(all)) }})
}

func (p *program) measure(c *cli.Context) (all []network.Metric, err error) {
	h, err := network.Open(p.options(c, func(string) {}), network.ReadOnly)
	if err != nil {
		return nil, err
	}
	all, err = h.Metrics(readVersion().Version)
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	return all, err
}

// exposition writes metrics in Prometheus' text format, version 0.0.4.
func exposition(all []network.Metric) []byte {
	var w bytes.Buffer
	for _, m := range all {
		fmt.Fprintf(&w, "# HELP %s %s\n# TYPE %s %s\n", m.Name, helpEscaper.Replace(m.Help), m.Name, m.Type)
		for _, s := range m.Samples {
			w.WriteString(m.Name)
			for i, l := range s.Labels {
				sep := ","
				if i == 0 {
					sep = "{"
				}
				fmt.Fprintf(&w, `%s%s="%s"`, sep, l.Name, labelEscaper.Replace(l.Value))
			}
			if len(s.Labels) > 0 {
				w.WriteByte('}')
			}
			w.WriteString(" " + strconv.FormatFloat(s.Value, 'g', -1, 64) + "\n")
		}
	}
	return w.Bytes()
}

var (
	helpEscaper  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// replaceFile gives the file new content in one step, see trusted.Replace. The collector is somebody else.
func replaceFile(path string, content []byte) error {
	if err := trusted.Replace(path, content, 0o644); err != nil {
		return fileFault(path, err)
	}
	return nil
}

// fileFault leaves out the name of the file that nobody asked for.
func fileFault(path string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return &network.Error{What: "file " + path, Why: err.Error(), Kind: network.ErrFailed, Err: err}
}

// The limits of the server: a client that is slow or silent is let go.
const (
	requestPatience  = 5 * time.Second
	responsePatience = 90 * time.Second // a command that changes things may be waited for
	idlePatience     = 2 * time.Minute
	endPatience      = 5 * time.Second
)

// serveMetrics serves until a signal, and lets answers under way come to their end.
func (p *program) serveMetrics(c *cli.Context, addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return listenFault(addr, err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT) // see watchFlows
	notify(stop, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(stop)
	srv := &http.Server{
		Handler:           p.metricsHandler(func() ([]network.Metric, error) { return p.measure(c) }),
		ReadHeaderTimeout: requestPatience,
		ReadTimeout:       requestPatience,
		WriteTimeout:      responsePatience,
		IdleTimeout:       idlePatience,
		MaxHeaderBytes:    16 << 10,
	}
	p.note(fmt.Sprintf("serving http://%s/metrics", ln.Addr()))
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return listenFault(addr, err)
	case <-stop:
	}
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close()
	}
	return nil
}

func listenFault(addr string, err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	kind := network.ErrFailed
	if errors.Is(err, syscall.EADDRINUSE) {
		kind = network.ErrConflict
	}
	return &network.Error{What: "listen at " + addr, Why: err.Error(), Kind: kind, Err: err}
}

// metricsHandler measures for each request anew, one at a time.
func (p *program) metricsHandler(measure func() ([]network.Metric, error)) http.Handler {
	var one sync.Mutex
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		one.Lock()
		all, err := measure()
		one.Unlock()
		if err != nil {
			p.warn(err.Error())
			http.Error(w, oneLine(err.Error()), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(exposition(all)) // a client that went away
	})
	return mux
}
