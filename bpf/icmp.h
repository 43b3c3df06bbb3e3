/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* ICMP errors about translated conversations (RFC 5508 4.2): the packet that an error
 * quotes is translated back to what its sender sent, and the error's own address with
 * it, so that path MTU discovery, traceroute and refused ports work through the host.
 *
 * The transport checksum inside the quotation is left alone: it may be cut off, and
 * nobody checks it.
 */
#pragma once
#include "flow.h"
#include "maps.h"
#include "packet.h"
#include "rewrite.h"

enum error_way {
	ERROR_IN = 0, /* from outside, about what an endpoint sent */
	ERROR_OUT = 1, /* from an endpoint, about what it received */
	ERROR_OF_HOST = 2, /* from the host itself, about what it forwards */
	ERROR_INSIDE = 3, /* from an endpoint to another, about a published port */
	ERROR_HOST_INSIDE = 4, /* from the host to an endpoint, about a published port */
};

/* quote_ports reads the ports of the quoted packet into the key of the packet that
 * would answer it: its destination port is our source port.
 */
static __always_inline int quote_ports(struct quote *q, struct tuple *key)
{
	const __be16 *port = (const __be16 *)q->l4;

	if (key->proto == IPPROTO_TCP || key->proto == IPPROTO_UDP) {
		key->sport = port[1];
		key->dport = port[0];
		return CONTINUE;
	}
	if (key->proto != IPPROTO_ICMP)
		return TO_STACK;
	if (q->l4[0] == ICMP_ECHO)
		key->dport = port[2];
	else if (q->l4[0] == ICMP_ECHOREPLY)
		key->sport = port[2];
	else
		return TO_STACK;
	return CONTINUE;
}

/* quote_read reads the quoted packet and makes the key that it is answered by.
 * Returns CONTINUE, or TO_STACK if it quotes nothing that is translated.
 */
static __always_inline int quote_read(struct __sk_buff *skb, struct packet *pkt, struct scratch *s)
{
	struct quote *q = &s->quote;
	__u32 off = pkt->l4_off + sizeof(struct icmp_echo);

	if (bpf_skb_load_bytes(skb, off, &q->ip, sizeof(q->ip)))
		return TO_STACK;
	if (q->ip.version != 4 || q->ip.ihl < 5 || q->ip.frag_off & bpf_htons(IP_OFFSET))
		return TO_STACK;
	q->l4_off = off + q->ip.ihl * 4;
	if (bpf_skb_load_bytes(skb, q->l4_off, q->l4, sizeof(q->l4)))
		return TO_STACK;
	__builtin_memset(&s->other_key, 0, sizeof(s->other_key));
	addr_from_v4(&s->other_key.src, q->ip.daddr);
	addr_from_v4(&s->other_key.dst, q->ip.saddr);
	s->other_key.proto = q->ip.protocol;
	return quote_ports(q, &s->other_key);
}

/* quote_write replaces the quoted packet by what xlat is the answer to, and corrects the
 * error's checksum, which covers it.
 */
static __always_inline int quote_write(struct __sk_buff *skb, struct packet *pkt, struct quote *q,
				       const struct tuple *xlat)
{
	struct iphdr ip = q->ip;
	__be16 l4[4];
	__s64 diff;

	__builtin_memcpy(l4, q->l4, sizeof(l4));
	csum_replace(&ip.check, ip.saddr, xlat->dst.w[3]);
	csum_replace(&ip.check, ip.daddr, xlat->src.w[3]);
	ip.saddr = xlat->dst.w[3];
	ip.daddr = xlat->src.w[3];
	if (xlat->proto == IPPROTO_ICMP) {
		l4[2] = xlat->sport | xlat->dport;
	} else {
		l4[0] = xlat->dport;
		l4[1] = xlat->sport;
	}
	diff = bpf_csum_diff((void *)&q->ip, sizeof(ip), (void *)&ip, sizeof(ip), 0);
	diff = bpf_csum_diff((void *)q->l4, sizeof(l4), (void *)l4, sizeof(l4), diff);
	if (bpf_skb_store_bytes(skb, pkt->l4_off + sizeof(struct icmp_echo), &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(skb, q->l4_off, l4, sizeof(l4), 0) ||
	    bpf_l4_csum_replace(skb, pkt->l4_off + __builtin_offsetof(struct icmp_echo, check), 0,
				diff, 0))
		return -DROP_REWRITE;
	return CONTINUE;
}

/* error_fits: may this error be about f? Outside sees the outer half of a conversation,
 * endpoints the inner one, and nobody speaks for another's (RFC 5508 REQ-3).
 */
static __always_inline int error_fits(struct packet *pkt, const struct flow *f,
				      const struct tuple *key, __u32 way)
{
	int outer = (f->kind == FLOW_SNAT || f->kind == FLOW_HOST) == (f->half == HALF_REPLY);
	int to = addr_equal(&key->dst, &pkt->tuple.dst),
	    from = addr_equal(&key->src, &pkt->tuple.src);

	if (f->kind == FLOW_LOCAL)
		return 0; /* not translated, so neither is what is said about it */
	if (way == ERROR_INSIDE)
		return f->kind == FLOW_HAIRPIN && f->iif == pkt->ifindex && from && to;
	if (way == ERROR_HOST_INSIDE)
		return f->kind == FLOW_HAIRPIN && to;
	if (f->kind == FLOW_DIRECT)
		return way == ERROR_IN ? to && f->iif == 0 : way == ERROR_OF_HOST || from;
	if (f->kind == FLOW_HAIRPIN)
		return 0;
	if (way == ERROR_IN)
		return outer && to;
	return !outer && (way == ERROR_OF_HOST || from);
}

/* translate_error translates the quotation of an ICMP error, and fills hit with the
 * tuple that the error itself shall have, and with the way in. It keeps no
 * conversation alive. Returns CONTINUE, TO_STACK if the error is about no conversation
 * of ours, or a drop.
 */
__noinline int translate_error(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
			       __u32 way)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct flow *f;
	int ret;

	if (!s || !pkt || !hit)
		return TO_STACK;
	ret = quote_read(skb, pkt, s);
	if (ret)
		return ret;
	f = flow_get(&s->other_key);
	if (!f || generation(f->slot) != f->gen || !flow_alive(f, pkt->now) ||
	    !error_fits(pkt, f, &s->other_key, way))
		return TO_STACK;
	s->orig = *f;
	barrier();
	if (f->tag != tuple_tag(&s->other_key))
		return TO_STACK;
	ret = quote_write(skb, pkt, &s->quote, &s->orig.xlat);
	if (ret)
		return ret;
	hit->xlat = pkt->tuple;
	if (way == ERROR_IN || way == ERROR_INSIDE)
		hit->xlat.dst = s->orig.xlat.dst;
	if (way == ERROR_OUT || way == ERROR_INSIDE ||
	    (way == ERROR_OF_HOST && s->orig.kind != FLOW_DIRECT))
		hit->xlat.src = s->orig.xlat.src;
	hit->oif = way == ERROR_IN || way == ERROR_INSIDE ? s->orig.oif : 0;
	hit->way_checked = 0;
	hit->half = HALF_REPLY; /* routed by the address that it will have */
	hit->kind = s->orig.kind;
	hit->slot = s->orig.slot;
	hit->gen = s->orig.gen;
	__builtin_memcpy(hit->dmac, s->orig.dmac, ETH_ALEN);
	__builtin_memcpy(hit->smac, s->orig.smac, ETH_ALEN);
	return CONTINUE;
}
