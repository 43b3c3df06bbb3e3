// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* What `ebnet bench` loads beside the datapath: a counter for the far end of a way, and the
 * limit that the datapath is compared with. Nothing here is part of a network that ebnet makes.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define PACKET_HOST 0

/* RFC 9293 3.1 */
struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 offset; /* of the data, in the high 4 bits, in 32-bit words */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};
#define TCP_SYN 2
#define TCP_ACK 16

/* Written by Go: the destination port of the packets to count, 0: none. */
volatile __be16 sink_port;

enum sunk_at {
	SUNK_FAR = 0, /* packets that the far end was given */
	SUNK_NEAR = 1, /* answers of reflect that came back */
	SUNK_AT = 2,
};

/* Packets that were counted and dropped. Read by Go. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SUNK_AT);
	__type(key, __u32);
	__type(value, __u64);
} sunk SEC(".maps");

/* What the limit knows beforehand: containers and the way out. Written by Go before loading, so
 * that the programs look nothing up.
 */
struct limit_end {
	__be32 addr;
	__u32 ifindex; /* host side of its veth pair */
	__u8 mac[6]; /* of the container's side */
	__u8 pad[2];
};
const volatile struct limit_end limit_ends[2];

struct limit_way {
	__u32 uplink;
	__u8 uplink_mac[6];
	__u8 outside_mac[6];
	__u8 gateway_mac[6]; /* of the bridge, which is what containers send to */
	__u8 pad[2];
};
const volatile struct limit_way limit_way;

static __always_inline int swallow(enum sunk_at at)
{
	__u32 key = at;
	__u64 *count = bpf_map_lookup_elem(&sunk, &key);

	if (count)
		++*count;
	return TC_ACT_SHOT;
}

/* sink: ingress of the far end's device. Counts the packets of the measurement, by their
 * destination port, and drops them; all others pass.
 */
SEC("tc")
int sink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = data + ETH_HLEN + sizeof(*ip); /* or TCP: ports stand first */

	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return TC_ACT_UNSPEC;
	if (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	if (!sink_port || udp->dest != sink_port)
		return TC_ACT_UNSPEC;
	return swallow(SUNK_FAR);
}

/* A TCP segment in an IPv4 packet without options. */
struct segment {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

static __always_inline struct segment *segment(struct __sk_buff *skb)
{
	struct segment *s = (void *)(long)skb->data;

	if ((void *)(s + 1) > (void *)(long)skb->data_end)
		return 0;
	if (s->eth.h_proto != bpf_htons(ETH_P_IP) || s->ip.ihl != 5 ||
	    s->ip.protocol != IPPROTO_TCP)
		return 0;
	return s;
}

/* What a server says first; Go knows it too. */
#define REFLECT_SEQ 2000

/* reflect: ingress of the far end's device. It stands for as many TCP servers as there are
 * addresses, at sink_port: a SYN gets its SYN-ACK, and what else comes is swallowed.
 * Exchanging addresses and ports changes no checksum.
 */
SEC("tc")
int reflect(struct __sk_buff *skb)
{
	struct segment *s = segment(skb);
	__be32 before[3], after[3]; /* sequence numbers; offset, flags and window */
	__u8 mac[ETH_ALEN];
	__be32 addr;
	__s64 diff;

	if (!s || !sink_port || s->tcp.dest != sink_port)
		return TC_ACT_UNSPEC;
	if (s->tcp.flags != TCP_SYN)
		return swallow(SUNK_FAR);
	__builtin_memcpy(mac, s->eth.h_dest, ETH_ALEN);
	__builtin_memcpy(s->eth.h_dest, s->eth.h_source, ETH_ALEN);
	__builtin_memcpy(s->eth.h_source, mac, ETH_ALEN);
	addr = s->ip.saddr;
	s->ip.saddr = s->ip.daddr;
	s->ip.daddr = addr;
	s->tcp.dest = s->tcp.source;
	s->tcp.source = sink_port;
	__builtin_memcpy(before, &s->tcp.seq, sizeof(before));
	s->tcp.ack_seq = bpf_htonl(bpf_ntohl(s->tcp.seq) + 1);
	s->tcp.seq = bpf_htonl(REFLECT_SEQ);
	s->tcp.flags = TCP_SYN | TCP_ACK;
	__builtin_memcpy(after, &s->tcp.seq, sizeof(after));
	diff = bpf_csum_diff(before, sizeof(before), after, sizeof(after), 0);
	if (diff < 0 ||
	    bpf_l4_csum_replace(skb, __builtin_offsetof(struct segment, tcp.check), 0, diff, 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

/* absorb: ingress of the client's device. The client is no TCP of the kernel's, which would
 * answer what reflect says by a reset.
 */
SEC("tc")
int absorb(struct __sk_buff *skb)
{
	struct segment *s = segment(skb);

	if (!s || !sink_port || s->tcp.source != sink_port)
		return TC_ACT_UNSPEC;
	return swallow(SUNK_NEAR);
}

static __always_inline void set_mac(__u8 *to, const volatile __u8 *mac)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		to[i] = mac[i];
}

/* to_end hands a packet to the container at the other end of a veth pair. */
static __always_inline int to_end(struct __sk_buff *skb, const volatile struct limit_end *to)
{
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(to->ifindex, 0);
}

static __always_inline int to_outside(struct ethhdr *eth)
{
	set_mac(eth->h_dest, limit_way.outside_mac);
	set_mac(eth->h_source, limit_way.uplink_mac);
	return bpf_redirect(limit_way.uplink, 0);
}

/* limit_from_container: ingress of a veth's host side, where ebnet has from_container. It does
 * the least that forwards at all: both MACs and a redirect. TTL, checksum, source and policy are
 * left alone, since this is the limit and no datapath.
 */
SEC("tc")
int limit_from_container(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (ip->daddr == limit_ends[0].addr)
		return to_end(skb, &limit_ends[0]);
	if (ip->daddr == limit_ends[1].addr)
		return to_end(skb, &limit_ends[1]);
	return to_outside(eth);
}

/* limit_from_uplink: ingress of the uplink, where ebnet has from_uplink. */
SEC("tc")
int limit_from_uplink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (ip->daddr != limit_ends[0].addr)
		return TC_ACT_UNSPEC;
	set_mac(eth->h_dest, limit_ends[0].mac);
	set_mac(eth->h_source, limit_way.gateway_mac);
	return to_end(skb, &limit_ends[0]);
}

/* What one lookup costs: a table like that of the datapath's confirmed conversations. Filled by
 * Go with both directions of each.
 */
struct lookup_value {
	__u64 w[sizeof(struct flow) / sizeof(__u64)];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by Go */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tuple);
	__type(value, struct lookup_value);
} lookups SEC(".maps");

/* Words of the value: the first and the last of its first 64 bytes, which a packet needs at
 * least, and one that counts packets, where struct flow has it.
 */
#define LOOKUP_FIRST 0
#define LOOKUP_LAST 7
#define LOOKUP_COUNT (__builtin_offsetof(struct flow, packets) / sizeof(__u64))

/* looked_up finds the packet's tuple, which is all that the limit for many conversations does
 * beside forwarding. No word that Go has written is 0.
 */
static __always_inline struct lookup_value *looked_up(struct segment *s)
{
	struct tuple key = { .proto = IPPROTO_TCP };
	struct lookup_value *v;

	key.src.w[2] = bpf_htonl(0xffff);
	key.src.w[3] = s->ip.saddr;
	key.dst.w[2] = bpf_htonl(0xffff);
	key.dst.w[3] = s->ip.daddr;
	key.sport = s->tcp.source;
	key.dport = s->tcp.dest;
	v = bpf_map_lookup_elem(&lookups, &key);
	return v && v->w[LOOKUP_FIRST] && v->w[LOOKUP_LAST] ? v : 0;
}

/* lookup_from_container: limit_from_container with one lookup. */
SEC("tc")
int lookup_from_container(struct __sk_buff *skb)
{
	struct segment *s = segment(skb);

	if (!s)
		return TC_ACT_UNSPEC;
	return looked_up(s) ? to_outside(&s->eth) : TC_ACT_SHOT;
}

/* lookup_write_from_container: the same, and what it finds is counted in. */
SEC("tc")
int lookup_write_from_container(struct __sk_buff *skb)
{
	struct segment *s = segment(skb);
	struct lookup_value *v;

	if (!s)
		return TC_ACT_UNSPEC;
	v = looked_up(s);
	if (!v)
		return TC_ACT_SHOT;
	v->w[LOOKUP_COUNT]++;
	return to_outside(&s->eth);
}
