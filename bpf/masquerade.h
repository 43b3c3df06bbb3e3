/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* First packets of endpoints to the outside. */
#pragma once
#include "endpoint.h"
#include "flow.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "uplink.h"

/* direct: do its packets leave as they are? */
static __always_inline int direct(const struct network *net)
{
	return net->flags & (NET_ROUTED | NET_NO_MASQUERADE);
}

/* may_open: can and may this packet open a conversation? CONTINUE or a drop. */
static __always_inline int may_open(struct packet *pkt, const struct network *net)
{
	if (pkt->part == LATER_FRAGMENT)
		return -DROP_FRAGMENT;
	if (!pkt->ported)
		return -DROP_PROTOCOL;
	if (!pkt->opens)
		return -DROP_NO_FLOW;
	return net->flags & NET_INTERNAL ? -DROP_INTERNAL : CONTINUE;
}

/* masquerade opens a conversation of the endpoint src toward the outside by oif: its
 * source becomes the uplink's address and a port that is free toward that peer, or stays
 * if the network is routed or not masqueraded. Returns CONTINUE and fills hit, or a drop.
 */
__noinline int masquerade(struct __sk_buff *skb, struct packet *pkt, struct hit *hit, __u32 oif)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct endpoint *ep;
	struct network *net;
	struct near *near;
	__u32 network;
	__be32 source;
	int ret, plain;

	if (!pkt || !hit || !s)
		return -DROP_TABLE_FULL;
	near = near_at(pkt->tuple.src.w[3]);
	ep = near ? 0 : endpoint_get(&pkt->tuple.src);
	if (!near && !ep)
		return -DROP_SPOOFED_ADDR;
	network = near ? near->network : ep->network;
	net = bpf_map_lookup_elem(&networks, &network);
	if (!net)
		return -DROP_SPOOFED_ADDR;
	ret = may_open(pkt, net);
	if (ret)
		return ret;
	if (!may_leave(oif, 0))
		return -DROP_NOT_UPLINK;
	plain = direct(net);
	s->opening = (struct opening){ .kind = plain ? FLOW_DIRECT : FLOW_SNAT };
	/* Removal deletes the endpoint, then raises the generation. Looked at in the opposite
	 * order here, a flow opened meanwhile is void from the start.
	 */
	s->opening.slot = near ? near->slot : ep->slot;
	s->opening.gen = generation(s->opening.slot);
	ep = endpoint_get(&pkt->tuple.src);
	if (!ep || ep->slot != s->opening.slot)
		return -DROP_SPOOFED_ADDR;
	s->opening.orig_iif = ep->ifindex;
	source = plain ? pkt->tuple.src.w[3] : source_address(skb, pkt, net, oif);
	if (!source)
		return -DROP_NO_SOURCE;
	s->orig.xlat = pkt->tuple;
	addr_from_v4(&s->orig.xlat.src, source);
	open_begin(s, pkt, &s->opening);
	if (pkt->way_found && (plain || source == pkt->preferred))
		way_out(&s->orig, pkt, &s->fib);
	else
		way_unknown(&s->orig);
	way_in(&s->reply, ep->ifindex, ep->mac, net);
	return open_finish(skb, pkt, hit, plain ? PORT_EXACT : PORT_OURS);
}
