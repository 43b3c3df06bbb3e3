// Command httpd serves one page that greets its visitor, and logs each visitor's
// address: what the demo needs to show who talks to whom. It speaks just enough
// HTTP itself, since net/http would be most of the demo's first build.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// patience is how long a visitor may take.
const patience = 10 * time.Second

func main() {
	listen := flag.String("listen", ":80", "`address` and port to serve on")
	name := flag.String("name", "httpd", "who the page says it is from")
	flag.Parse()

	ln, err := net.Listen("tcp4", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "httpd:", err)
		os.Exit(1)
	}
	fmt.Println("serving on", ln.Addr())
	for {
		c, err := ln.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "httpd:", err)
			os.Exit(1)
		}
		go serve(c, *name)
	}
}

// serve answers one request, whatever it asks for.
func serve(c net.Conn, name string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	request, err := r.ReadString('\n')
	for line := request; err == nil && strings.TrimSpace(line) != ""; {
		line, err = r.ReadString('\n') // headers, up to the empty line
	}
	if err != nil {
		return
	}
	words := strings.Fields(request)
	if len(words) < 2 {
		return
	}
	fmt.Printf("%s %s from %s\n", words[0], words[1], c.RemoteAddr())
	page := fmt.Sprintf("hello from %s, you are %s\n", name, c.RemoteAddr())
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		len(page), page)
}
