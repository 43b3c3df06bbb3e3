/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Conversations of the host itself, and of others that it forwards for. They are left
 * alone unless their answers could be taken for those of an endpoint's conversation: then
 * they are tracked, and translated where the answers would be the same.
 *
 * The host's own sockets are seen by the search for ports (host_socket() in nat.h), so they
 * are looked at here only for ports that translations use. Pings have no socket to be
 * seen, and neither has what is forwarded: theirs are tracked from the first packet.
 */
#pragma once
#include "flow.h"
#include "fragment.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "rewrite.h"
#include "uplink.h"

/* host_concerns: may a packet of the host meet a conversation of an endpoint? A look at as
 * few bytes as will do, since it is asked for each. Later fragments have no port to
 * translate.
 */
static __always_inline int host_concerns(struct __sk_buff *skb)
{
	struct iphdr *ip = (void *)(long)skb->data + L3_OFF;
	__be16 *sport = (void *)(ip + 1);

	if ((void *)(sport + 2) > (void *)(long)skb->data_end)
		return skb->len >=
		       L3_OFF + sizeof(*ip) + 2 * sizeof(*sport); /* not linear: look well */
	if (ip->protocol == IPPROTO_ICMP)
		return 1;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return 0;
	if (ip->frag_off & bpf_htons(IP_OFFSET))
		return 0;
	return *(__u8 *)ip != 0x45 || port_tracked(ip->protocol, *sport);
}

/* host_conflict: would the answers belong to a conversation of an endpoint? */
static __always_inline int host_conflict(struct packet *pkt)
{
	struct tuple answer;
	struct flow *f;

	tuple_reverse(&answer, &pkt->tuple);
	f = flow_get(&answer);
	return f && !flow_stale(f, pkt->now);
}

/* open_plain opens s->opening with a translation that changes nothing but, if need be, the
 * source port, and without a way out: the host sends these itself.
 */
static __always_inline int open_plain(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
				      struct scratch *s, __u32 choice)
{
	s->orig.xlat = pkt->tuple;
	open_begin(s, pkt, &s->opening);
	way_unknown(&s->orig);
	way_unknown(&s->reply);
	return open_finish(skb, pkt, hit, choice);
}

/* open_host tracks a conversation of the host, with another port if its own is taken. */
__noinline int open_host(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!pkt || !hit || !s)
		return -DROP_TABLE_FULL;
	/* Slot 0 is nobody's and stays; and from no device does the host itself come in. */
	s->opening = (struct opening){ .kind = FLOW_HOST, .orig_iif = ANY_DEVICE };
	return open_plain(skb, pkt, hit, s, PORT_KEPT);
}

/* translate_host: what leaves by an uplink and is no endpoint's. It is never dropped. */
static __always_inline int translate_host(struct __sk_buff *skb, struct packet *pkt,
					  struct hit *hit, int forwarded)
{
	int ret;

	if (!pkt->ported ||
	    (pkt->tuple.proto != IPPROTO_ICMP && !port_tracked(pkt->tuple.proto, pkt->tuple.sport)))
		return TO_STACK;
	if (flow_find(pkt, ANY_DEVICE, hit) != FLOW_HIT) {
		if (!pkt->opens)
			return TO_STACK;
		if (!forwarded && pkt->tuple.proto != IPPROTO_ICMP && !host_conflict(pkt))
			return TO_STACK;
		if (open_host(skb, pkt, hit))
			return TO_STACK;
	}
	if (hit->kind != FLOW_HOST)
		return TO_STACK;
	ret = rewrite(skb, pkt, hit, 0);
	return ret ? ret : TO_STACK;
}

/* host_in: an answer to a conversation of the host. */
static __always_inline int host_in(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret = rewrite(skb, pkt, hit, 0);

	return ret ? ret : TO_STACK;
}

/* open_local tracks what an endpoint sends to one of the host's addresses. Where the host
 * is the one to answer nobody asks for it; but what another engine on this host translates
 * (a port that it published) is answered by way of the host's forwarding, which to_bridge
 * lets in for such a conversation alone.
 */
__noinline int open_local(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct endpoint *ep;
	struct network *net;

	if (!pkt || !hit || !s)
		return TO_STACK;
	ep = endpoint_get(&pkt->tuple.src);
	net = ep ? bpf_map_lookup_elem(&networks, &ep->network) : 0;
	if (!net)
		return TO_STACK;
	if (!local_address(skb, pkt, &pkt->tuple.dst, net->bridge))
		return TO_STACK;
	s->opening = (struct opening){ .kind = FLOW_LOCAL, .slot = ep->slot };
	s->opening.gen = generation(ep->slot);
	s->opening.orig_iif = pkt->ifindex;
	s->opening.reply_iif = net->bridge;
	open_plain(skb, pkt, hit, s, PORT_EXACT);
	return TO_STACK;
}
