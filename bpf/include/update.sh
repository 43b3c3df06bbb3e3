#!/bin/sh
# Copies the vendored headers from Debian's libbpf-dev and linux-libc-dev and notes their versions.
set -eu
cd "$(dirname "$0")"
for h in bpf_helpers.h bpf_helper_defs.h bpf_endian.h bpf_core_read.h; do
	cp "/usr/include/bpf/$h" bpf/
done
for h in bpf.h bpf_common.h if_ether.h ip.h udp.h pkt_cls.h pkt_sched.h stddef.h const.h; do
	cp "/usr/include/linux/$h" linux/
done
{
	dpkg-query -W -f '${Package} ${Version} (bpf/*.h)\n' libbpf-dev
	dpkg-query -W -f '${Package} ${Version} (linux/*.h but types.h, which is ours, as is asm/byteorder.h)\n' linux-libc-dev
} >VERSION
