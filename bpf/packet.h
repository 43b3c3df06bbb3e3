/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The packet under way: parsing into plain fields, and the verdicts of stages. */
#pragma once
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "config.h"

/* What a stage returns: CONTINUE, a final verdict, or a negated enum drop_reason.
 * Not TC codes, since TC_ACT_OK is 0 and would read as "go on".
 */
enum verdict {
	CONTINUE = 0,
	TO_STACK = 1, /* leave it to the kernel, as it now is */
	REDIRECTED = 2,
};

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define PACKET_HOST 0
#define VLAN_ID 0xfff /* of skb->vlan_tci; 0 is a priority without a VLAN */
#define L3_OFF ETH_HLEN
#define V4_MAPPED bpf_htonl(0xffff)

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

enum tcp_flag {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
};

/* RFC 792 */
struct icmp_echo {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;
	__be16 seq;
};

enum part {
	WHOLE = 0,
	FIRST_FRAGMENT = 1, /* has the ports */
	LATER_FRAGMENT = 2, /* has none */
} __attribute__((packed));

/* What a packet was the occasion of, for finish() to tell. */
enum news {
	NEWS_OPENED = 1, /* the conversation in the scratch's orig and reply was opened */
	NEWS_CLOSED = 2, /* the conversation of the scratch's hit was closed */
	NEWS_FRAGMENT = 4, /* a fragment before it went astray */
};

/* A parsed packet. Offsets are from the start of the Ethernet header. */
struct packet {
	struct tuple tuple; /* as the packet carries it; ports 0 where it has none */
	__u64 now; /* jiffies */
	__u32 l4_off;
	__u32 len; /* of the frame */
	__u32 ifindex; /* device of the hook */
	__u8 dmac[6]; /* both at a multiple of 4, for mac_equal() on the stack */
	__be16 eth_proto;
	__u8 smac[6];
	__u8 tos;
	__u8 ttl;
	enum part part; /* of a datagram */
	__u8 ported; /* sport and dport are those of the packet */
	__u8 error; /* an ICMP error, which quotes another packet */
	__u8 opens; /* may open a conversation */
	__u8 seen; /* enum flow_seen bits that it shows */
	__u8 ack; /* TCP ACK */
	__be16 ip_id; /* identification, for what is in fragments */
	__be32 preferred; /* source that the FIB prefers for this packet, 0: not known */
	__u8 unconfirmed; /* flows had no entry for tuple a moment ago */
	__u8 unknown; /* no table had an entry for tuple a moment ago */
	__u8 way_found; /* the scratch's fib is the way out of this packet, neighbour and all */
	__u8 news; /* enum news bits */
	__u32 toward; /* host side of the veth of the endpoint that it is for, 0: see tuple */
	__u8 translated; /* tuple is what it was translated to */
	__u8 pad[3];
};

static __always_inline void addr_from_v4(struct addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = V4_MAPPED;
	a->w[3] = v4;
}

static __always_inline int is_loopback(__be32 v4)
{
	return (bpf_ntohl(v4) >> 24) == 127;
}

/* trackable: can it belong to a conversation, by its ports or by those of the fragment
 * before it?
 */
static __always_inline int trackable(const struct packet *pkt)
{
	return pkt->ported || pkt->part == LATER_FRAGMENT;
}

/* is_source: may a packet on the wire have this source (RFC 1122 3.2.1.3)? */
static __always_inline int is_source(__be32 v4)
{
	__u32 net = bpf_ntohl(v4) >> 24;

	return net != 0 && net != 127 && net < 224;
}

static __always_inline int addr_equal(const struct addr *a, const struct addr *b)
{
	const __u32 *x = a->w, *y = b->w;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline int mac_equal(const void *a, const void *b)
{
	return *(const __u32 *)a == *(const __u32 *)b &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

static __always_inline void mac_copy(void *to, const void *from)
{
	*(__u32 *)to = *(const __u32 *)from;
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

/* is_gateway: is it the Ethernet address of a bridge of ours? Those start 06:eb. */
static __always_inline int is_gateway(const void *mac)
{
	return *(const __be16 *)mac == bpf_htons(0x06eb);
}

/* tuple_reverse makes the tuple of the answer. */
static __always_inline void tuple_reverse(struct tuple *to, const struct tuple *from)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
	to->scope = from->scope;
	to->pad[0] = 0;
	to->pad[1] = 0;
}

/* Room that the headers need in the linear part: Ethernet, IPv4 with options, TCP. */
#define HEADERS (ETH_HLEN + 60 + 20)

/* ensure_linear makes the headers readable by pointer. Frames from a driver or a
 * socket have them there already; others are pulled once.
 */
static __always_inline int ensure_linear(struct __sk_buff *skb)
{
	__u32 want = skb->len < HEADERS ? skb->len : HEADERS;

	if ((long)skb->data_end - (long)skb->data >= want)
		return CONTINUE;
	return bpf_skb_pull_data(skb, want) ? -DROP_MALFORMED : CONTINUE;
}

/* parse_eth reads the Ethernet header. Returns CONTINUE or -DROP_MALFORMED. */
static __always_inline int parse_eth(struct __sk_buff *skb, struct packet *pkt)
{
	int ret = ensure_linear(skb);
	void *data = (void *)(long)skb->data;
	struct ethhdr *eth = data;

	if (ret)
		return ret;
	if (data + sizeof(*eth) > (void *)(long)skb->data_end)
		return -DROP_MALFORMED;
	mac_copy(pkt->dmac, eth->h_dest);
	mac_copy(pkt->smac, eth->h_source);
	pkt->eth_proto = *(__be16 *)&eth->h_proto;
	return CONTINUE;
}

/* What follows may not reach beyond the datagram: room is what its total length leaves for
 * the transport header and payload.
 */
static __always_inline int parse_tcp(struct packet *pkt, struct tcphdr *tcp, void *end, __u32 room)
{
	__u8 flags;

	if ((void *)(tcp + 1) > end || tcp->offset >> 4 < 5 || (tcp->offset >> 4) * 4 > room)
		return -DROP_MALFORMED;
	flags = tcp->flags;
	pkt->tuple.sport = tcp->source;
	pkt->tuple.dport = tcp->dest;
	pkt->ported = 1;
	pkt->ack = !!(flags & TCP_ACK);
	pkt->opens = (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	pkt->seen |= (flags & TCP_SYN ? SEEN_SYN : 0) | (flags & TCP_FIN ? SEEN_FIN : 0) |
		     (flags & TCP_RST ? SEEN_RST : 0) |
		     (pkt->ack && !(flags & TCP_SYN) ? SEEN_ACK : 0);
	return CONTINUE;
}

static __always_inline int parse_udp(struct packet *pkt, struct udphdr *udp, void *end, __u32 room)
{
	__u32 len;

	if ((void *)(udp + 1) > end)
		return -DROP_MALFORMED;
	len = bpf_ntohs(udp->len); /* of the whole datagram, also in its first fragment */
	if (room < sizeof(*udp) || len < sizeof(*udp) || (pkt->part == WHOLE && len > room))
		return -DROP_MALFORMED;
	pkt->tuple.sport = udp->source;
	pkt->tuple.dport = udp->dest;
	pkt->ported = 1;
	pkt->opens = 1;
	return CONTINUE;
}

/* Only echo has an identifier to translate by (RFC 792); errors are translated by what
 * they quote, and others not at all.
 */
static __always_inline int parse_icmp(struct packet *pkt, struct icmp_echo *icmp, void *end,
				      __u32 room)
{
	if ((void *)(icmp + 1) > end || room < sizeof(*icmp))
		return -DROP_MALFORMED;
	if (icmp->type == ICMP_ECHO) {
		pkt->tuple.sport = icmp->id;
		pkt->opens = 1;
		pkt->ported = 1;
	} else if (icmp->type == ICMP_ECHOREPLY) {
		pkt->tuple.dport = icmp->id;
		pkt->ported = 1;
	} else {
		pkt->error = icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
			     icmp->type == ICMP_PARAMETER_PROBLEM ||
			     icmp->type == ICMP_SOURCE_QUENCH;
	}
	return CONTINUE;
}

/* parse_ipv4 reads the IPv4 header and what follows it: tuple, ttl, tos and flags.
 * Later fragments have no ports; see fragment.h.
 * Returns CONTINUE or -DROP_MALFORMED.
 */
static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *pkt)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + L3_OFF;
	__u32 len, total;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return -DROP_MALFORMED;
	len = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (!total && pkt->len > 0xffff) /* segments of more than 64 KB (BIG TCP) */
		total = pkt->len - L3_OFF;
	if (total < len || L3_OFF + total > pkt->len) /* shorter: there is padding */
		return -DROP_MALFORMED;
	addr_from_v4(&pkt->tuple.src, ip->saddr);
	addr_from_v4(&pkt->tuple.dst, ip->daddr);
	pkt->tuple.proto = ip->protocol;
	pkt->tos = ip->tos;
	pkt->ttl = ip->ttl;
	pkt->l4_off = L3_OFF + len;
	pkt->seen = SEEN_PACKET;
	pkt->ip_id = ip->id;
	if (ip->frag_off & bpf_htons(IP_OFFSET)) {
		pkt->part = LATER_FRAGMENT;
		return CONTINUE;
	}
	if (ip->frag_off & bpf_htons(IP_MF))
		pkt->part = FIRST_FRAGMENT;
	data += L3_OFF + len;
	if (ip->protocol == IPPROTO_TCP)
		return parse_tcp(pkt, data, end, total - len);
	if (ip->protocol == IPPROTO_UDP)
		return parse_udp(pkt, data, end, total - len);
	if (ip->protocol == IPPROTO_ICMP)
		return parse_icmp(pkt, data, end, total - len);
	return CONTINUE;
}
