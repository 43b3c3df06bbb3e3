/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Published ports: first packets of clients, outside and inside. */
#pragma once
#include "endpoint.h"
#include "flow.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "uplink.h"

/* service_find returns the published port that the packet is for: of its very
 * destination address, else of any address if that one is the host's. Its key is left in s.
 */
static __always_inline struct service *service_find(struct __sk_buff *skb, struct packet *pkt,
						    struct scratch *s)
{
	struct service_key *key = &s->service_key;
	struct service *svc;
	struct network *net;

	if (is_loopback(pkt->tuple.dst.w[3]))
		return 0; /* for the host's own processes, see socket.h */
	key->addr = pkt->tuple.dst;
	key->port = pkt->tuple.dport;
	key->proto = pkt->tuple.proto;
	svc = bpf_map_lookup_elem(&services, key);
	if (svc)
		return svc;
	key->addr.w[3] = 0;
	svc = bpf_map_lookup_elem(&services, key);
	if (!svc)
		return 0;
	net = bpf_map_lookup_elem(&networks, &svc->network);
	return net && local_address(skb, pkt, &pkt->tuple.dst, net->bridge) ? svc : 0;
}

/* reserve_service reads the published port that the packet is for and the generation
 * that a flow to it will carry. Removal deletes the service, then raises the
 * generation: looked at in the opposite order here, a flow opened meanwhile is void from
 * the start. Null if no port is published there.
 */
static __always_inline struct service *reserve_service(struct __sk_buff *skb, struct packet *pkt,
						       struct scratch *s)
{
	struct service *svc = service_find(skb, pkt, s);
	struct opening *o = &s->opening;

	if (!svc)
		return 0;
	o->slot = svc->slot;
	o->gen = generation(svc->slot);
	svc = bpf_map_lookup_elem(&services, &s->service_key); /* as service_find() left it */
	if (!svc || svc->slot != o->slot)
		return 0;
	o->reply_iif = svc->ifindex;
	return svc;
}

/* source_allowed: may the packet's source use the port? */
static __always_inline int source_allowed(struct packet *pkt, struct scratch *s,
					  const struct service *svc)
{
	s->source_key.prefixlen = 160;
	s->source_key.slot = svc->slot;
	s->source_key.addr = pkt->tuple.src;
	return !(svc->flags & SERVICE_RESTRICTED) || bpf_map_lookup_elem(&sources, &s->source_key);
}

/* toward makes the endpoint's address and port the destination of the translation. */
static __always_inline void toward(struct scratch *s, struct packet *pkt, const struct service *svc)
{
	s->orig.xlat = pkt->tuple;
	s->orig.xlat.dst = svc->addr;
	s->orig.xlat.dport = svc->port;
}

/* publish opens the conversation of a client with a published port. The client keeps its
 * address, and its port unless another of its conversations already reaches the
 * endpoint's port with it by way of another host address or port.
 *
 * inside: the client is an endpoint, whose way back is the way it came. Where it reaches
 * itself it gets the gateway's address, since it would not take a packet from its own.
 *
 * Returns CONTINUE and fills hit, TO_STACK if no port is published there, or a drop.
 */
__noinline int publish(struct __sk_buff *skb, struct packet *pkt, struct hit *hit, __u32 inside)
{
	__u32 zero = 0, itself, routed_net;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct service *svc;
	struct network *net;

	if (!pkt || !hit || !s)
		return TO_STACK;
	s->opening = (struct opening){ .kind = inside ? FLOW_HAIRPIN : FLOW_DNAT };
	svc = reserve_service(skb, pkt, s);
	net = svc ? bpf_map_lookup_elem(&networks, &svc->network) : 0;
	if (!net || net->flags & NET_INTERNAL)
		return TO_STACK;
	pkt->toward = svc->ifindex;
	if (!source_allowed(pkt, s, svc))
		return -DROP_SOURCE;
	routed_net = net->flags & NET_ROUTED;
	if (routed_net && !inside) /* published as it is: toward() changes nothing */
		s->opening.kind = FLOW_DIRECT;
	itself = inside && svc->ifindex == pkt->ifindex;
	s->opening.orig_iif = inside ? pkt->ifindex : 0;
	toward(s, pkt, svc);
	if (itself)
		s->orig.xlat.src = net->gateway4;
	open_begin(s, pkt, &s->opening);
	way_in(&s->orig, svc->ifindex, svc->mac, net);
	if (inside) {
		way_back(&s->reply, pkt);
		note_caller(pkt);
	} else {
		way_unknown(&s->reply);
	}
	return open_finish(skb, pkt, hit,
			   routed_net ? PORT_EXACT
			   : itself   ? PORT_OURS
				      : PORT_PEERS);
}

/* open_ping lets an endpoint of a routed network be pinged, since its address is meant to
 * be seen. CONTINUE and hit, or a drop.
 */
__noinline int open_ping(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct endpoint *ep;
	struct network *net;

	if (!pkt || !hit || !s)
		return -DROP_DIRECT;
	ep = endpoint_get(&pkt->tuple.dst);
	net = ep ? bpf_map_lookup_elem(&networks, &ep->network) : 0;
	if (!net)
		return -DROP_DIRECT;
	s->opening = (struct opening){ .kind = FLOW_DIRECT };
	s->opening.slot = ep->slot;
	s->opening.gen = generation(ep->slot);
	ep = endpoint_get(&pkt->tuple.dst); /* as in masquerade() */
	if (!ep || ep->slot != s->opening.slot)
		return -DROP_DIRECT;
	s->opening.reply_iif = ep->ifindex;
	s->orig.xlat = pkt->tuple;
	open_begin(s, pkt, &s->opening);
	way_in(&s->orig, ep->ifindex, ep->mac, net);
	way_unknown(&s->reply);
	return open_finish(skb, pkt, hit, PORT_EXACT);
}
