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

/* The headers after Ethernet's, up to and with the ports: IPv4 without options. Not packed, and
 * without Ethernet's 14 bytes: the compiler would read and write byte by byte.
 */
struct plain_headers {
	struct iphdr ip;
	__be16 sport;
	__be16 dport;
	__u8 rest_of_udp[4];
};

/* Ethernet's, in halves of a word. */
struct plain_ethernet {
	__be16 dmac[3];
	__be16 smac[3];
	__be16 proto;
};

#define IPV4_NO_OPTIONS 0x45 /* version and header length */

static __always_inline struct plain_ethernet *plain_ethernet(const struct plain_headers *h)
{
	return (void *)h - L3_OFF;
}

/* plain_frame returns the headers of a frame that has TCP or UDP ports right after an IPv4
 * header without options, whole and of the lengths that it claims; else null.
 */
static __always_inline struct plain_headers *plain_frame(struct __sk_buff *skb)
{
	struct plain_headers *h = (void *)(long)skb->data + L3_OFF;
	__u32 total;

	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		return 0;
	if (plain_ethernet(h)->proto != bpf_htons(ETH_P_IP) || *(__u8 *)&h->ip != IPV4_NO_OPTIONS)
		return 0;
	if (h->ip.protocol != IPPROTO_TCP && h->ip.protocol != IPPROTO_UDP)
		return 0;
	if (h->ip.frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return 0;
	total = bpf_ntohs(h->ip.tot_len);
	if (!total && skb->len > 0xffff) /* as in parse_ipv4() */
		total = skb->len - L3_OFF;
	if (total < sizeof(*h) || L3_OFF + total > skb->len)
		return 0;
	return h;
}

/* plain_whole: is the transport header whole, and are its lengths within the datagram? */
static __always_inline int plain_whole(struct __sk_buff *skb, struct plain_headers *h)
{
	__u32 room = skb->len - L3_OFF - sizeof(struct iphdr);
	__u32 total = bpf_ntohs(h->ip.tot_len);
	struct tcphdr *tcp = (void *)&h->sport;
	struct udphdr *udp = (void *)&h->sport;

	if (total)
		room = total - sizeof(struct iphdr);
	if (h->ip.protocol == IPPROTO_UDP)
		return bpf_ntohs(udp->len) >= sizeof(*udp) && bpf_ntohs(udp->len) <= room;
	return (void *)(tcp + 1) <= (void *)(long)skb->data_end && tcp->offset >> 4 >= 5 &&
	       (tcp->offset >> 4) * 4 <= room;
}

/* plain_news returns what a packet with these headers shows, as enum flow_seen; 0: something
 * that is not for here to judge (TCP that opens or closes, lengths that do not fit).
 */
static __always_inline __u32 plain_news(struct __sk_buff *skb, struct plain_headers *h)
{
	struct tcphdr *tcp = (void *)&h->sport;

	if (!plain_whole(skb, h))
		return 0;
	if (h->ip.protocol == IPPROTO_UDP)
		return SEEN_PACKET;
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end ||
	    (tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
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

/* plain_read copies what is needed of f, found under s->key, whose side is the one that is
 * translated: the source, or else the destination. Returns 0 if the other side is translated as well,
 * or if the entry has become another flow's meanwhile (see flow_read()).
 */
static __always_inline int plain_read(struct scratch *s, struct flow *f, int source)
{
	struct plain *p = &s->plain;
	int kept = source ? f->xlat.dst.w[3] == s->key.dst.w[3] && f->xlat.dport == s->key.dport
			  : f->xlat.src.w[3] == s->key.src.w[3] && f->xlat.sport == s->key.sport;

	p->addr = source ? f->xlat.src.w[3] : f->xlat.dst.w[3];
	p->port = source ? f->xlat.sport : f->xlat.dport;
	p->oif = f->oif;
	p->slot = f->slot;
	p->gen = f->gen;
	p->way_checked = f->way_checked;
	p->half = f->half;
	mac_copy(p->dmac, f->dmac);
	mac_copy(p->smac, f->smac);
	barrier();
	return kept && f->tag == tuple_tag(&s->key);
}

/* plain_counts: f counts, and a packet that shows seen tells nothing new about it. */
static __always_inline int plain_counts(struct scratch *s, struct flow *f, __u32 seen, __u64 now)
{
	__u64 silent = now - f->last_seen;

	if (seen & ~f->seen || generation(s->plain.slot) != s->plain.gen)
		return 0;
	if (silent >= hz) {
		if (silent >= timeout_of(s->key.proto, f->seen, f->peer_seen))
			return 0;
		f->last_seen = now;
	}
	return 1;
}

/* plain_sum changes the transport checksum for one side of s->key. */
static __always_inline int plain_sum(struct __sk_buff *skb, struct scratch *s, int source)
{
	__be32 addr = source ? s->key.src.w[3] : s->key.dst.w[3];
	__be16 port = source ? s->key.sport : s->key.dport;
	__u32 udp = s->key.proto == IPPROTO_UDP, state = checksum_state(skb);
	__u32 off = udp ? __builtin_offsetof(struct udphdr, check)
			: __builtin_offsetof(struct tcphdr, check);
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;
	struct plain *p = &s->plain;
	__sum16 *check;

	off += L3_OFF + sizeof(struct iphdr);
	check = (void *)(long)skb->data + off;
	if (state != CHECKSUM_COMPLETE && (void *)(check + 1) <= (void *)(long)skb->data_end) {
		l4_sum_replace(check, state, udp, addr, p->addr, port, p->port);
		return CONTINUE;
	}
	if (addr != p->addr &&
	    bpf_l4_csum_replace(skb, off, addr, p->addr, flags | BPF_F_PSEUDO_HDR | sizeof(addr)))
		return -DROP_REWRITE;
	if (port != p->port && bpf_l4_csum_replace(skb, off, port, p->port, flags | sizeof(port)))
		return -DROP_REWRITE;
	return CONTINUE;
}

/* plain_rewrite is rewrite() for one side of s->key and for headers at fixed places. The
 * transport checksum comes first, since helpers make what is known of the packet void.
 */
static __always_inline int plain_rewrite(struct __sk_buff *skb, struct scratch *s, int source)
{
	struct plain *p = &s->plain;
	struct plain_headers *h;

	if (plain_sum(skb, s, source))
		return -DROP_REWRITE;
	h = (void *)(long)skb->data + L3_OFF;
	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		return -DROP_REWRITE;
	mac_copy(plain_ethernet(h)->dmac, p->dmac);
	mac_copy(plain_ethernet(h)->smac, p->smac);
	if (source) {
		csum_forwarded(&h->ip, h->ip.saddr, p->addr);
		h->ip.saddr = p->addr;
		h->sport = p->port;
	} else {
		csum_forwarded(&h->ip, h->ip.daddr, p->addr);
		h->ip.daddr = p->addr;
		h->dport = p->port;
	}
	h->ip.ttl--;
	return CONTINUE;
}

/* way_shared: has another conversation with the same destination found within the last second
 * that the way out of f, as read into s->plain, is still the one?
 */
static __always_inline int way_shared(struct __sk_buff *skb, struct scratch *s, struct flow *f,
				      __u8 tos, __u64 now)
{
	struct plain *p = &s->plain;
	__u32 place;
	struct way *way;

	s->hit.xlat = s->key;
	s->hit.xlat.src.w[3] = p->addr;
	s->hit.xlat.sport = p->port;
	place = way_place(&s->way_key, &s->hit.xlat, p->half, skb->ifindex, tos);
	way = way_known(s, place, p->oif, p->dmac, p->smac, now);
	if (!way)
		return 0;
	f->way_checked = way->checked;
	return 1;
}

/* fast_out: from an endpoint to outside. That the flow was opened from this very device
 * vouches for the source.
 */
static __always_inline int fast_out(struct __sk_buff *skb, struct plain_headers *h,
				    struct scratch *s)
{
	__u64 now = bpf_jiffies64() + clock_offset;
	__u32 seen = plain_news(skb, h);
	struct flow *f;
	int ret;

	if (!seen || h->ip.ttl <= 1)
		return CONTINUE;
	plain_tuple(&s->key, h);
	f = bpf_map_lookup_elem(&flows, &s->key);
	s->missed = !f;
	if (!f || f->iif != skb->ifindex || !f->oif)
		return CONTINUE;
	if (f->kind != FLOW_SNAT && f->kind != FLOW_DNAT && f->kind != FLOW_DIRECT)
		return CONTINUE;
	if (!plain_read(s, f, 1) || !plain_counts(s, f, seen, now))
		return CONTINUE;
	if ((__u32)now - s->plain.way_checked >= hz && !way_shared(skb, s, f, h->ip.tos, now))
		return CONTINUE;
	if (!fits(skb, s->plain.oif))
		return CONTINUE;
	f->packets++; /* as in flow_touch() */
	f->bytes += skb->len;
	ret = plain_rewrite(skb, s, 1);
	return ret ? ret : send_done(skb, s->plain.oif, 0);
}

/* fast_in: from outside to an endpoint. */
static __always_inline int fast_in(struct __sk_buff *skb, struct plain_headers *h,
				   struct scratch *s)
{
	struct flow *f;
	__u32 seen;
	int ret;

	seen = plain_news(skb, h);
	if (!seen || h->ip.ttl <= 1)
		return CONTINUE;
	plain_tuple(&s->key, h);
	f = bpf_map_lookup_elem(&flows, &s->key);
	s->missed = !f;
	if (!f || f->iif != OUTSIDE || f->kind == FLOW_HOST)
		return CONTINUE;
	if (!plain_read(s, f, 0) || !plain_counts(s, f, seen, bpf_jiffies64() + clock_offset))
		return CONTINUE;
	if (s->plain.half == HALF_REPLY && !may_leave(skb->ifindex, 0))
		return CONTINUE; /* containers do not open conversations that way */
	if (!fits(skb, s->plain.oif))
		return CONTINUE;
	f->packets++;
	f->bytes += skb->len;
	ret = plain_rewrite(skb, s, 0);
	return ret ? ret : redirected(bpf_redirect_peer(s->plain.oif, 0));
}

/* fast_neighbour: between two endpoints of one network that talk to each other's own
 * addresses. Nothing in the packet changes. A place may be given to another endpoint while it is read:
 * its address is written first, and so looked at once more at last.
 */
static __always_inline int fast_neighbour(struct __sk_buff *skb, struct plain_headers *h)
{
	struct near *from = near_at(h->ip.saddr), *to = near_at(h->ip.daddr);
	struct plain_ethernet *eth = plain_ethernet(h);
	struct network *net;
	__u32 network, ifindex;

	if (!from || from->ifindex != skb->ifindex || !mac_equal(from->mac, eth->smac))
		return CONTINUE;
	if (!to || to->network != from->network || !mac_equal(to->mac, eth->dmac))
		return CONTINUE;
	if (h->sport == bpf_htons(67) && h->dport == bpf_htons(68)) /* see plays_dhcp() */
		return CONTINUE;
	network = to->network;
	net = bpf_map_lookup_elem(&networks, &network);
	if (!net || net->flags & NET_NO_ICC || (from->published && is_caller(to->slot)))
		return CONTINUE;
	ifindex = to->ifindex;
	barrier();
	if (from->addr != h->ip.saddr || to->addr != h->ip.daddr || !plain_whole(skb, h))
		return CONTINUE;
	return send_peer(skb, ifindex);
}

/* is_hosts: is it for the host, and can be none of ours? Asked of each packet that comes in, so
 * nothing is looked at but what decides it.
 */
static __always_inline int is_hosts(struct __sk_buff *skb)
{
	struct plain_headers *h = (void *)(long)skb->data + L3_OFF;

	if ((void *)(&h->rest_of_udp) > (void *)(long)skb->data_end)
		return 0;
	if (*(__u8 *)&h->ip != IPV4_NO_OPTIONS || h->ip.frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return 0;
	if (h->ip.protocol != IPPROTO_TCP && h->ip.protocol != IPPROTO_UDP)
		return 0;
	return !port_tracked(h->ip.protocol, h->dport) && !inner_near(h->ip.daddr);
}

/* fast_from_container: what an endpoint sends. */
static __always_inline int fast_from_container(struct __sk_buff *skb, struct scratch *s)
{
	struct plain_headers *h;

	s->missed = 0;
	if (!fast_path || skb->vlan_present || !(h = plain_frame(skb)))
		return CONTINUE;
	return is_gateway(plain_ethernet(h)->dmac) ? fast_out(skb, h, s) : fast_neighbour(skb, h);
}

/* fast_from_uplink: what comes from outside. */
static __always_inline int fast_from_uplink(struct __sk_buff *skb, struct scratch *s)
{
	struct plain_headers *h;

	s->missed = 0;
	if (!fast_path || !(h = plain_frame(skb)))
		return CONTINUE;
	return fast_in(skb, h, s);
}
