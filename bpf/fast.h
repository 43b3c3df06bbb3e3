/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What most packets are: established TCP or UDP without anything special about it. One lookup,
 * one rewrite, one redirect, without the room and the questions that others need.
 *
 * Each of these functions decides a packet wholly or leaves it as it is (CONTINUE), and
 * what follows them decides every packet on its own: taken out, they change nothing but
 * the cost. What they need room for is in the CPU's scratch, since the stack is for the
 * deep chains (512 bytes in all); and nothing here is called that can be in line, since a
 * return costs some nanoseconds where the processor's predictions are not trusted.
 */
#pragma once
#include "drop.h"
#include "endpoint.h"
#include "flow.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "rewrite.h"
#include "uplink.h"

/* The headers up to and with the ports: Ethernet, IPv4 without options. */
struct plain_headers {
	struct ethhdr eth;
	struct iphdr ip;
	__be16 sport;
	__be16 dport;
	__u8 rest_of_udp[4];
} __attribute__((packed));

#define IPV4_NO_OPTIONS 0x45 /* version and header length */

/* plain_frame returns the headers of a frame that has TCP or UDP ports right after an IPv4
 * header without options, whole and of the lengths that it claims; else null.
 */
static __always_inline struct plain_headers *plain_frame(struct __sk_buff *skb)
{
	struct plain_headers *h = (void *)(long)skb->data;
	__u32 total;

	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		return 0;
	if (h->eth.h_proto != bpf_htons(ETH_P_IP) || *(__u8 *)&h->ip != IPV4_NO_OPTIONS)
		return 0;
	if (h->ip.protocol != IPPROTO_TCP && h->ip.protocol != IPPROTO_UDP)
		return 0;
	if (h->ip.frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return 0;
	total = bpf_ntohs(h->ip.tot_len);
	if (!total && skb->len > 0xffff) /* as in parse_ipv4() */
		total = skb->len - L3_OFF;
	if (total < sizeof(*h) - L3_OFF || L3_OFF + total > skb->len)
		return 0;
	return h;
}

/* plain_news returns what a packet with these headers shows, as enum flow_seen; 0: something
 * that is not for here to judge (TCP that opens or closes, lengths that do not fit).
 */
static __always_inline __u32 plain_news(struct __sk_buff *skb, struct plain_headers *h)
{
	__u32 room = skb->len - L3_OFF - sizeof(struct iphdr);
	__u32 total = bpf_ntohs(h->ip.tot_len);
	struct tcphdr *tcp = (void *)&h->sport;
	struct udphdr *udp = (void *)&h->sport;

	if (total)
		room = total - sizeof(struct iphdr);
	if (h->ip.protocol == IPPROTO_UDP)
		return bpf_ntohs(udp->len) >= sizeof(*udp) && bpf_ntohs(udp->len) <= room
			       ? SEEN_PACKET
			       : 0;
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end || tcp->offset >> 4 < 5 ||
	    (tcp->offset >> 4) * 4 > room)
		return 0;
	if ((tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
		return 0;
	return SEEN_PACKET | SEEN_ACK;
}

static __always_inline void plain_tuple(struct tuple *t, const struct plain_headers *h)
{
	addr_from_v4(&t->src, h->ip.saddr);
	addr_from_v4(&t->dst, h->ip.daddr);
	t->sport = h->sport;
	t->dport = h->dport;
	t->proto = h->ip.protocol;
	t->scope = 0;
	t->pad[0] = 0;
	t->pad[1] = 0;
}

/* flow_fresh: f, found under key, counts, and a packet that shows seen tells nothing new
 * about it. Fills hit.
 */
static __always_inline int flow_fresh(const struct tuple *key, struct flow *f, __u32 seen,
				      __u64 now, struct hit *hit)
{
	__u64 silent = now - f->last_seen;

	if (!flow_read(key, f, hit))
		return 0;
	if (seen & ~f->seen || generation(hit->slot) != hit->gen)
		return 0;
	if (silent >= hz) {
		if (silent >= timeout_of(key->proto, f->seen, f->peer_seen))
			return 0;
		f->last_seen = now;
	}
	return 1;
}

/* fits: is no segment of the packet too big for the device? */
static __always_inline int fits(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return skb->len <= MTU_EVERYWHERE ||
	       bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) == 0;
}

/* One side of a packet is translated. */
struct change {
	__be32 from_addr;
	__be32 to_addr;
	__be16 from_port;
	__be16 to_port;
	__u8 source; /* the source, not the destination */
	__u8 proto;
};

/* plain_rewrite is rewrite() for one side and for headers at fixed places. The checksums of
 * the transport header come first, since helpers make what is known of the packet void.
 */
static __always_inline int plain_rewrite(struct __sk_buff *skb, const struct change *c,
					 const struct hit *hit)
{
	__u32 udp = c->proto == IPPROTO_UDP;
	__u32 check = udp ? __builtin_offsetof(struct udphdr, check)
			  : __builtin_offsetof(struct tcphdr, check);
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;
	struct plain_headers *h;

	check += L3_OFF + sizeof(struct iphdr);
	if (c->from_addr != c->to_addr &&
	    bpf_l4_csum_replace(skb, check, c->from_addr, c->to_addr,
				flags | BPF_F_PSEUDO_HDR | sizeof(c->to_addr)))
		return -DROP_REWRITE;
	if (c->from_port != c->to_port &&
	    bpf_l4_csum_replace(skb, check, c->from_port, c->to_port, flags | sizeof(c->to_port)))
		return -DROP_REWRITE;
	h = (void *)(long)skb->data;
	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		return -DROP_REWRITE;
	__builtin_memcpy(h->eth.h_dest, hit->dmac, ETH_ALEN);
	__builtin_memcpy(h->eth.h_source, hit->smac, ETH_ALEN);
	if (c->source) {
		h->ip.saddr = c->to_addr;
		h->sport = c->to_port;
	} else {
		h->ip.daddr = c->to_addr;
		h->dport = c->to_port;
	}
	csum_forwarded(&h->ip, c->from_addr, c->to_addr);
	h->ip.ttl--;
	return CONTINUE;
}

/* fast_out: from an endpoint to outside. That the flow was opened from this very device
 * vouches for the source.
 */
static __always_inline int fast_out(struct __sk_buff *skb, struct plain_headers *h,
				    struct scratch *s)
{
	__u64 now = bpf_jiffies64() + clock_offset;
	struct change change = { .source = 1 };
	struct hit *hit = &s->hit;
	struct flow *f;
	__u32 seen;
	int ret;

	seen = plain_news(skb, h);
	if (!seen || h->ip.ttl <= 1)
		return CONTINUE;
	plain_tuple(&s->key, h);
	f = bpf_map_lookup_elem(&flows, &s->key);
	if (!f || f->iif != skb->ifindex || !f->oif)
		return CONTINUE;
	if (f->kind != FLOW_SNAT && f->kind != FLOW_DNAT && f->kind != FLOW_DIRECT)
		return CONTINUE;
	if (!flow_fresh(&s->key, f, seen, now, hit))
		return CONTINUE;
	if (hit->xlat.dst.w[3] != s->key.dst.w[3] || hit->xlat.dport != s->key.dport)
		return CONTINUE;
	if ((__u32)now - hit->way_checked >= hz && !way_shared(s, skb->ifindex, f, h->ip.tos, now))
		return CONTINUE;
	if (!fits(skb, hit->oif))
		return CONTINUE;
	f->packets++; /* as in flow_touch() */
	f->bytes += skb->len;
	change.from_addr = s->key.src.w[3];
	change.to_addr = hit->xlat.src.w[3];
	change.from_port = s->key.sport;
	change.to_port = hit->xlat.sport;
	change.proto = s->key.proto;
	ret = plain_rewrite(skb, &change, hit);
	return ret ? ret : send_done(skb, hit->oif, 0);
}

/* fast_in: from outside to an endpoint, or to the host and none of ours. */
static __always_inline int fast_in(struct __sk_buff *skb, struct plain_headers *h,
				   struct scratch *s)
{
	struct hit *hit = &s->hit;
	struct change change = {};
	struct flow *f;
	__u32 seen;
	int ret;

	if (!port_tracked(h->ip.protocol, h->dport) && !inner_near(h->ip.daddr))
		return TO_STACK;
	seen = plain_news(skb, h);
	if (!fast_path || !seen || h->ip.ttl <= 1)
		return CONTINUE;
	plain_tuple(&s->key, h);
	f = bpf_map_lookup_elem(&flows, &s->key);
	if (!f || f->iif != OUTSIDE || f->kind == FLOW_HOST)
		return CONTINUE;
	if (!flow_fresh(&s->key, f, seen, bpf_jiffies64() + clock_offset, hit))
		return CONTINUE;
	if (hit->xlat.src.w[3] != s->key.src.w[3] || hit->xlat.sport != s->key.sport)
		return CONTINUE;
	if (hit->half == HALF_REPLY && !may_leave(skb->ifindex, 0))
		return CONTINUE; /* containers do not open conversations that way */
	if (!fits(skb, hit->oif))
		return CONTINUE;
	f->packets++;
	f->bytes += skb->len;
	change.from_addr = s->key.dst.w[3];
	change.to_addr = hit->xlat.dst.w[3];
	change.from_port = s->key.dport;
	change.to_port = hit->xlat.dport;
	change.proto = s->key.proto;
	ret = plain_rewrite(skb, &change, hit);
	return ret ? ret : redirected(bpf_redirect_peer(hit->oif, 0));
}

/* near_at finds a container of the network by its address, if it is the one at its place. */
static __always_inline struct near *near_at(__be32 v4)
{
	__u32 place = bpf_ntohl(v4) & (NEARS - 1);
	struct near *near = bpf_map_lookup_elem(&nears, &place);

	return near && near->addr == v4 && v4 ? near : 0;
}

/* fast_neighbour: between two endpoints of one network that talk to each other's own
 * addresses. Nothing in the packet changes.
 */
static __always_inline int fast_neighbour(struct __sk_buff *skb, struct plain_headers *h)
{
	struct near *from = near_at(h->ip.saddr), *to = near_at(h->ip.daddr);
	struct network *net;
	__u32 network;

	if (!from || from->ifindex != skb->ifindex || !mac_equal(from->mac, h->eth.h_source))
		return CONTINUE;
	if (!to || to->network != from->network || !mac_equal(to->mac, h->eth.h_dest))
		return CONTINUE;
	if (h->sport == bpf_htons(67) && h->dport == bpf_htons(68)) /* see plays_dhcp() */
		return CONTINUE;
	network = to->network;
	net = bpf_map_lookup_elem(&networks, &network);
	if (!net || net->flags & NET_NO_ICC || (from->published && is_caller(to->slot)))
		return CONTINUE;
	return send_peer(skb, to->ifindex);
}

/* fast_from_container: what an endpoint sends. */
static __always_inline int fast_from_container(struct __sk_buff *skb, struct scratch *s)
{
	struct plain_headers *h;

	if (!fast_path || skb->vlan_present || !(h = plain_frame(skb)))
		return CONTINUE;
	return is_gateway(h->eth.h_dest) ? fast_out(skb, h, s) : fast_neighbour(skb, h);
}

/* fast_from_uplink: what comes from outside. */
static __always_inline int fast_from_uplink(struct __sk_buff *skb, struct scratch *s)
{
	struct plain_headers *h = plain_frame(skb);

	return h ? fast_in(skb, h, s) : CONTINUE;
}
