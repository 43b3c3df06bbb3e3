/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Published ports: first packets from outside. */
#pragma once
#include "endpoint.h"
#include "flow.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "uplink.h"

/* service_find returns the published port that the packet is for: of its very
 * destination address, else of any address if that one is the host's.
 */
static __always_inline struct service *service_find(struct __sk_buff *skb, struct packet *pkt)
{
	struct service_key key = { .addr = pkt->tuple.dst,
				   .port = pkt->tuple.dport,
				   .proto = pkt->tuple.proto };
	struct service *svc = bpf_map_lookup_elem(&services, &key);
	struct network *net;

	if (svc)
		return svc;
	if (is_loopback(pkt->tuple.dst.w[3]))
		return 0; /* the host's own, but not from outside */
	key.addr.w[3] = 0;
	svc = bpf_map_lookup_elem(&services, &key);
	if (!svc)
		return 0;
	net = bpf_map_lookup_elem(&networks, &svc->network);
	return net && local_address(skb, pkt, &pkt->tuple.dst, net->bridge) ? svc : 0;
}

/* publish opens the conversation of a client outside with a published port. The client
 * keeps its address, and its port unless another of its conversations already reaches
 * the endpoint's port with it by way of another host address or port.
 * Returns CONTINUE and fills hit, TO_STACK if no port is published there, or a drop.
 */
__noinline int publish(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct opening o = { .kind = FLOW_DNAT };
	struct service *svc;
	struct network *net;

	if (!pkt || !hit || !s)
		return TO_STACK;
	svc = service_find(skb, pkt);
	net = svc ? bpf_map_lookup_elem(&networks, &svc->network) : 0;
	if (!net || net->flags & NET_INTERNAL)
		return TO_STACK;
	/* Removal deletes the service, then raises the generation. Seen in the opposite
	 * order, a flow opened meanwhile is void from the start.
	 */
	o.slot = svc->slot;
	o.gen = generation(svc->slot);
	svc = service_find(skb, pkt);
	if (!svc || svc->slot != o.slot)
		return TO_STACK;
	o.reply_iif = svc->ifindex;
	s->orig.xlat = pkt->tuple;
	s->orig.xlat.dst = svc->addr;
	s->orig.xlat.dport = svc->port;
	open_begin(s, pkt, &o);
	way_in(&s->orig, svc->ifindex, svc->mac, net);
	way_unknown(&s->reply);
	return open_finish(skb, pkt, hit, 1);
}
