// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* ebnet's programs, one a hook, each read top-down in the order of a packet's way.
 *
 * "From" and "to" are the container's view. Each hook is one program without tail
 * calls, so replacing it is one atomic update.
 */
#include "drop.h"
#include "endpoint.h"
#include "fast.h"
#include "flow.h"
#include "fragment.h"
#include "host.h"
#include "icmp.h"
#include "maps.h"
#include "masquerade.h"
#include "monitor.h"
#include "nat.h"
#include "packet.h"
#include "rewrite.h"
#include "service.h"
#include "socket.h"
#include "sweep.h"
#include "uplink.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* to_gateway: is the frame for a bridge of ours? */
static __always_inline int to_gateway(const struct packet *pkt)
{
	return is_gateway(pkt->dmac);
}

/* error_out: an ICMP error of an endpoint must be about a conversation of ours, or it would
 * leave with the endpoint's address.
 */
static __always_inline int error_out(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret = translate_error(skb, pkt, hit, ERROR_OUT);

	return ret == TO_STACK ? -DROP_NO_FLOW : ret;
}

/* deliver_inside translates a packet of an endpoint to a published port, or the answer,
 * and hands it on. Its flow ends with the published port, not with the client, whose
 * address may have become another's.
 */
static __always_inline int deliver_inside(struct __sk_buff *skb, struct packet *pkt,
					  struct hit *hit)
{
	struct endpoint *to = endpoint_get(&hit->xlat.dst);

	pkt->toward = hit->oif;
	if (!to || to->ifindex != hit->oif)
		return -DROP_NO_FLOW;
	return deliver_in(skb, pkt, hit);
}

/* error_inside: an ICMP error of an endpoint about a conversation by way of a published port.
 * CONTINUE if it is about none.
 */
static __always_inline int error_inside(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret = translate_error(skb, pkt, hit, ERROR_INSIDE);

	if (ret == TO_STACK)
		return CONTINUE;
	return ret ? ret : deliver_inside(skb, pkt, hit);
}

/* open_to_host: a packet to one of the host's addresses that belongs to no conversation by way
 * of a published port. It may be the first of one, even if it is known as the host's: the
 * port may be published by now.
 */
__noinline int open_to_host(struct __sk_buff *skb, struct packet *pkt, struct hit *hit, int known)
{
	int ret = TO_STACK;

	if (!pkt || !hit)
		return TO_STACK;
	if (pkt->part == LATER_FRAGMENT && !known)
		fragment_early(pkt);
	if (!pkt->opens)
		return TO_STACK; /* the host resets what it does not know */
	if (port_published(pkt->tuple.proto, pkt->tuple.dport))
		ret = publish(skb, pkt, hit, 1);
	if (ret == TO_STACK)
		return known ? TO_STACK : open_local(skb, pkt, hit);
	return ret ? ret : deliver_inside(skb, pkt, hit);
}

/* to_host: an endpoint's packet to one of the host's addresses is for a published port, or
 * for the host itself, or for what another engine makes of it.
 */
static __always_inline int to_host(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
				   const struct network *net)
{
	int ret;

	if (!to_gateway(pkt))
		return TO_STACK;
	if (net->flags & NET_INTERNAL)
		return addr_equal(&pkt->tuple.dst, &net->gateway4) ? TO_STACK : -DROP_INTERNAL;
	if (pkt->error)
		return (ret = error_inside(skb, pkt, hit)) ? ret : TO_STACK;
	if (!trackable(pkt) || pkt->tuple.proto == IPPROTO_ICMP)
		return TO_STACK;
	ret = conversation(pkt, pkt->ifindex, hit);
	if (ret == FLOW_HIT && hit->kind == FLOW_HAIRPIN)
		return deliver_inside(skb, pkt, hit);
	return open_to_host(skb, pkt, hit, ret == FLOW_HIT);
}

/* answers_side: is it for a device where endpoints only answer, and an answer? With the fast
 * path it would not be new.
 */
static __always_inline int answers_side(struct packet *pkt, struct hit *hit, __u32 oif)
{
	if (!may_leave(oif, 1))
		return 0;
	if (pkt->error)
		return 1;
	return !fast_path && trackable(pkt) && conversation(pkt, pkt->ifindex, hit) == FLOW_HIT;
}

/* forward_new decides about a packet of an endpoint that no flow knows. */
static __always_inline int forward_new(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
				       const struct network *net)
{
	long result = find_route(skb, pkt, &pkt->tuple, net->bridge, FIB_SRC);
	struct bpf_fib_lookup *fib;
	__u32 oif;
	int ret;

	if (!routed(result) || !(fib = found()))
		return to_host(skb, pkt, hit, net); /* or the kernel says unreachable */
	oif = fib->ifindex;
	if (fib_flags & FIB_SRC && fib->ipv4_src != pkt->tuple.src.w[3])
		pkt->preferred = fib->ipv4_src;
	pkt->way_found = result == BPF_FIB_LKUP_RET_SUCCESS && fib->family == AF_INET;
	if (!may_leave(oif, 0) && !answers_side(pkt, hit, oif))
		return -DROP_NOT_UPLINK;
	if (net->flags & NET_INTERNAL)
		return -DROP_INTERNAL;
	if (!fast_path || needs_kernel(skb, pkt, oif))
		return TO_STACK;
	ret = pkt->error ? error_out(skb, pkt, hit) : masquerade(skb, pkt, hit, oif);
	return ret ? ret : send_out(skb, pkt, hit, net->bridge);
}

/* other_network: networks are closed to each other, but for the published ports of a routed
 * one, which are at their endpoints' own addresses.
 */
__noinline int other_network(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret = TO_STACK;

	if (!pkt || !hit || !trackable(pkt) || !to_gateway(pkt))
		return -DROP_OTHER_NETWORK;
	if (conversation(pkt, pkt->ifindex, hit) == FLOW_HIT)
		return hit->kind == FLOW_HAIRPIN ? deliver_inside(skb, pkt, hit)
						 : -DROP_OTHER_NETWORK;
	if (pkt->opens && pkt->tuple.proto != IPPROTO_ICMP)
		ret = publish(skb, pkt, hit, 1);
	if (ret == TO_STACK)
		return -DROP_OTHER_NETWORK;
	return ret ? ret : deliver_inside(skb, pkt, hit);
}

/* leave_inside ends a conversation within the host whose packets the host now routes out: it
 * has lost the address that they are for.
 */
static __always_inline int leave_inside(struct packet *pkt, const struct hit *hit)
{
	if (hit->kind != FLOW_HAIRPIN && hit->kind != FLOW_LOCAL)
		return FLOW_HIT;
	flow_end(pkt);
	return FLOW_MISS;
}

/* still_inside looks, once a second, whether the address that a conversation within the host
 * is for is still the host's; if not, the conversation ends and the packet belongs to none.
 */
__noinline int still_inside(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
			    __u32 bridge)
{
	if (!pkt || !hit)
		return 0;
	if ((__u32)pkt->now - hit->way_checked < hz)
		return 1;
	if (routed(ask_about(skb, pkt, &pkt->tuple.dst, bridge)))
		return leave_inside(pkt, hit) == FLOW_HIT;
	way_kept(pkt);
	return 1;
}

/* leave_network: an endpoint's unicast to anything but a neighbour. */
static __always_inline int leave_network(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
					 const struct network *net, __u32 own)
{
	__u32 network = network_of(&pkt->tuple.dst);
	int ret;

	if (network == own)
		return to_host(skb, pkt, hit, net); /* the gateway, or nobody: the bridge knows */
	if (network && bpf_map_lookup_elem(&endpoints, &pkt->tuple.dst))
		return net->flags & NET_INTERNAL ? -DROP_OTHER_NETWORK
						 : other_network(skb, pkt, hit);
	if (!to_gateway(pkt))
		return -DROP_NOT_UPLINK;
	ret = fast_path && trackable(pkt) ? conversation(pkt, pkt->ifindex, hit) : FLOW_MISS;
	if (ret == FLOW_HIT && hit->kind != FLOW_HAIRPIN && hit->kind != FLOW_LOCAL)
		return send_out(skb, pkt, hit, net->bridge);
	if (ret == FLOW_HIT && still_inside(skb, pkt, hit, net->bridge))
		return hit->kind == FLOW_LOCAL ? open_to_host(skb, pkt, hit, 1)
					       : deliver_inside(skb, pkt, hit);
	if (ret == FLOW_TOMBSTONE)
		return -DROP_RETIRED;
	return forward_new(skb, pkt, hit, net);
}

/* answer_inside: does an endpoint with published ports answer another endpoint (to), or itself
 * by the gateway's address, that came by one of them? CONTINUE if not.
 */
static __always_inline int answer_inside(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
					 const struct endpoint *to, const struct network *net)
{
	if (to ? !is_caller(to->slot) : !addr_equal(&pkt->tuple.dst, &net->gateway4))
		return CONTINUE;
	if (pkt->error)
		return error_inside(skb, pkt, hit);
	if (!trackable(pkt))
		return CONTINUE;
	if (conversation(pkt, pkt->ifindex, hit) != FLOW_HIT || hit->kind != FLOW_HAIRPIN)
		return CONTINUE;
	return deliver_inside(skb, pkt, hit);
}

/* from_endpoint: the checks and ways of everything an endpoint sends. */
static __always_inline int from_endpoint(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	__u32 ifindex = pkt->ifindex;
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);
	struct network *net = dev ? bpf_map_lookup_elem(&networks, &dev->network) : 0;
	struct endpoint *to;
	int ret;

	if (!net)
		return -DROP_UNKNOWN_DEVICE;
	if (pkt->eth_proto == bpf_htons(ETH_P_ARP))
		return check_arp(skb, pkt, dev);
	if (pkt->eth_proto != bpf_htons(ETH_P_IP))
		return -DROP_FAMILY;
	if ((ret = check_source(pkt, dev)))
		return ret;
	if (plays_dhcp(pkt))
		return -DROP_DHCP_SERVER;
	if (is_loopback(pkt->tuple.dst.w[3]))
		return -DROP_LOOPBACK;
	to = inner_near(pkt->tuple.dst.w[3]) ? bpf_map_lookup_elem(&endpoints, &pkt->tuple.dst) : 0;
	if (dev->published && (ret = answer_inside(skb, pkt, hit, to, net)))
		return ret;
	if (to && to->network == dev->network)
		return deliver_neighbour(skb, pkt, to, net);
	if (net->flags & NET_NO_ICC && !to_gateway(pkt))
		return -DROP_ICC; /* broadcast too: neighbours would get it */
	if (to_many(pkt))
		return TO_STACK;
	return leave_network(skb, pkt, hit, net, dev->network);
}

/* from_container: ingress of a veth's host side. */
SEC("tc")
int from_container(struct __sk_buff *skb)
{
	struct scratch *s = room();
	struct packet *pkt;
	struct hit *hit;
	int ret;

	skb->tc_index = 0;
	if (!s)
		return TC_ACT_SHOT;
	if ((ret = fast_from_container(skb, s)))
		return finish_plain(skb, ret, AT_FROM_CONTAINER);
	begin(skb, s);
	s->packet.unconfirmed = s->missed;
	pkt = &s->packet;
	hit = &s->hit;
	if ((ret = parse_eth(skb, pkt)))
		return finish(skb, s, ret, AT_FROM_CONTAINER);
	if (skb->vlan_present) /* a tag that is not in the frame, and would stay on it */
		return finish(skb, s, -DROP_FAMILY, AT_FROM_CONTAINER);
	if (pkt->eth_proto == bpf_htons(ETH_P_IP) && (ret = parse_ipv4(skb, pkt)))
		return finish(skb, s, ret, AT_FROM_CONTAINER);
	return finish(skb, s, from_endpoint(skb, pkt, hit), AT_FROM_CONTAINER);
}

/* from_bridge: ingress of a network's bridge, for what the bridge hands up to the host.
 * Without the fast path this is where endpoints' packets are routed: by the host's FIB
 * and neighbour tables, but not past its FORWARD rules, which are not about them.
 */
SEC("tc")
int from_bridge(struct __sk_buff *skb)
{
	struct bpf_fib_lookup *fib;
	struct scratch *s;
	struct packet *pkt;
	struct hit *hit;
	__u32 oif;
	int ret;

	if (fast_path || skb->protocol != bpf_htons(ETH_P_IP) || skb->tc_index == MARK_DONE)
		return TC_ACT_UNSPEC;
	s = room();
	if (!s)
		return TC_ACT_SHOT;
	begin(skb, s);
	pkt = &s->packet;
	hit = &s->hit;
	if ((ret = parse_eth(skb, pkt)) || (ret = parse_ipv4(skb, pkt)))
		return finish(skb, s, ret, AT_FROM_BRIDGE);
	if (to_many(pkt) || !bpf_map_lookup_elem(&endpoints, &pkt->tuple.src))
		return TC_ACT_UNSPEC;
	if (!routed(find_route(skb, pkt, &pkt->tuple, skb->ifindex, 0)) || !(fib = found()))
		return TC_ACT_UNSPEC;
	oif = fib->ifindex;
	if (!may_leave(oif, 1) || needs_kernel(skb, pkt, oif))
		return TC_ACT_UNSPEC;
	/* To another engine's containers: our answers; what that engine translates is its own. */
	if (!may_leave(oif, 0) && conversation(pkt, ANY_DEVICE, hit) != FLOW_HIT)
		return TC_ACT_UNSPEC;
	hit->xlat = pkt->tuple;
	if ((ret = rewrite(skb, pkt, hit, 1)))
		return finish(skb, s, ret, AT_FROM_BRIDGE);
	ret = send_neigh(skb, fib);
	skb->tc_index = 0; /* forwarded, but not translated yet */
	return finish(skb, s, ret, AT_FROM_BRIDGE);
}

/* translate_out: what the host's routing sends out for an endpoint. */
static __always_inline int translate_out(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	struct network *net = network_toward(&pkt->tuple.src);
	int ret;

	if (net && net->bridge != skb->ingress_ifindex)
		return -DROP_SPOOFED_ADDR;
	ret = trackable(pkt) ? conversation(pkt, ANY_DEVICE, hit) : FLOW_MISS;
	if (ret == FLOW_TOMBSTONE)
		return -DROP_RETIRED;
	if (ret == FLOW_HIT && leave_inside(pkt, hit) == FLOW_HIT)
		ret = check_source_kept(skb, pkt, hit);
	else if (!may_leave(pkt->ifindex, pkt->error))
		return TO_STACK; /* was for the host, and another engine published it */
	else
		ret = pkt->error ? error_out(skb, pkt, hit)
				 : masquerade(skb, pkt, hit, pkt->ifindex);
	if (ret)
		return ret;
	ret = rewrite(skb, pkt, hit, 0);
	return ret ? ret : TO_STACK;
}

/* of_endpoint: does the host forward it for one of ours? */
static __always_inline int of_endpoint(struct packet *pkt)
{
	return endpoint_get(&pkt->tuple.src) || network_of(&pkt->tuple.src);
}

/* host_out: what the host itself sends goes untouched, but what could be mistaken for a
 * conversation of ours, and ICMP errors about packets that it forwards for us, since it
 * knows only what they were translated to.
 */
static __always_inline int host_out(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret;

	if (parse_eth(skb, pkt) || parse_ipv4(skb, pkt))
		return TO_STACK;
	if (!pkt->error)
		return translate_host(skb, pkt, hit, 0);
	ret = translate_error(skb, pkt, hit, ERROR_OF_HOST);
	return ret ? ret : rewrite(skb, pkt, hit, 0);
}

/* to_uplink: egress of an uplink. Nothing with an endpoint's address leaves it. */
SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	struct scratch *s;
	struct packet *pkt;
	struct hit *hit;
	int ret;

	if (skb->tc_index == MARK_DONE) {
		skb->tc_index = 0;
		return TC_ACT_UNSPEC;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (!skb->ingress_ifindex && !host_concerns(skb))
		return TC_ACT_UNSPEC;
	s = room();
	if (!s)
		return TC_ACT_SHOT;
	begin(skb, s);
	pkt = &s->packet;
	hit = &s->hit;
	if (!skb->ingress_ifindex)
		return finish(skb, s, host_out(skb, pkt, hit), AT_TO_UPLINK);
	if ((ret = parse_eth(skb, pkt)) || (ret = parse_ipv4(skb, pkt)))
		return finish(skb, s, ret, AT_TO_UPLINK);
	if (!of_endpoint(pkt))
		return finish(skb, s, translate_host(skb, pkt, hit, 1), AT_TO_UPLINK);
	return finish(skb, s, translate_out(skb, pkt, hit), AT_TO_UPLINK);
}

/* deliver_hit: a packet from outside that belongs to a conversation. */
static __always_inline int deliver_hit(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	pkt->toward = hit->oif;
	if (hit->half == HALF_REPLY && hit->kind != FLOW_HOST && !may_leave(pkt->ifindex, 0))
		return -DROP_SPOOFED_ADDR; /* containers do not open conversations that way */
	return hit->kind == FLOW_HOST ? host_in(skb, pkt, hit) : deliver_in(skb, pkt, hit);
}

/* open_in: a packet from outside that no flow knows. inner is the id of the network that
 * it is for by its address, 0: none.
 */
static __always_inline int open_in(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
				   __u32 inner)
{
	int ret = TO_STACK;

	if (network_of(&pkt->tuple.src))
		return -DROP_SPOOFED_ADDR;
	if (pkt->opens && is_source(pkt->tuple.src.w[3])) {
		if (pkt->tuple.proto != IPPROTO_ICMP)
			ret = publish(skb, pkt, hit, 0);
		else if (inner)
			ret = open_ping(skb, pkt, hit);
	}
	if (ret == TO_STACK && inner)
		return -DROP_DIRECT;
	return ret ? ret : deliver_in(skb, pkt, hit);
}

/* reach_inner: a packet from outside to an address of a network, not known to be tracked. */
static __always_inline int reach_inner(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
				       __u32 inner, int looked)
{
	struct network *net = bpf_map_lookup_elem(&networks, &inner);

	if (net && direct(net) && pkt->ported) {
		if (!looked && conversation(pkt, OUTSIDE, hit) == FLOW_HIT)
			return deliver_hit(skb, pkt, hit);
		if (net->flags & NET_ROUTED)
			return open_in(skb, pkt, hit, inner);
	}
	if (network_of(&pkt->tuple.src))
		return -DROP_SPOOFED_ADDR;
	/* What another engine on this host published answers by its own address until the host has
	 * translated it back: to_bridge knows it then.
	 */
	return may_leave(pkt->ifindex, 0) ? -DROP_DIRECT : TO_STACK;
}

/* from_outside: is it an answer, or for a published port, or the host's? */
static __always_inline int from_outside(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int tracked = pkt->ported && (pkt->tuple.proto == IPPROTO_ICMP ||
				      port_tracked(pkt->tuple.proto, pkt->tuple.dport));
	int later = pkt->part == LATER_FRAGMENT;
	__u32 inner;

	if ((tracked || later) && conversation(pkt, OUTSIDE, hit) == FLOW_HIT)
		return deliver_hit(skb, pkt, hit);
	inner = network_of(&pkt->tuple.dst);
	if (inner)
		return reach_inner(skb, pkt, hit, inner, tracked);
	if (later)
		fragment_early(pkt);
	else if (pkt->part == FIRST_FRAGMENT)
		fragment_forget(pkt);
	if (!tracked || pkt->tuple.proto == IPPROTO_ICMP ||
	    !port_published(pkt->tuple.proto, pkt->tuple.dport))
		return TO_STACK;
	return open_in(skb, pkt, hit, 0);
}

/* error_in: an ICMP error from outside is for the endpoint whose packet it quotes, or for
 * the host.
 */
static __always_inline int error_in(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret = translate_error(skb, pkt, hit, ERROR_IN);

	if (ret == TO_STACK && network_of(&pkt->tuple.dst))
		return -DROP_DIRECT;
	return ret ? ret : deliver_hit(skb, pkt, hit);
}

/* from_uplink: ingress of an uplink. Frames for others and what is none of ours go on
 * to the host untouched.
 */
SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct scratch *s;
	struct packet *pkt;
	struct hit *hit;
	int ret;

	skb->tc_index = 0;
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		return TC_ACT_UNSPEC; /* for a VLAN device above this one, which has hooks of its own */
	if (is_hosts(skb))
		return TC_ACT_UNSPEC;
	s = room();
	if (!s)
		return TC_ACT_SHOT;
	if ((ret = fast_from_uplink(skb, s)))
		return finish_plain(skb, ret, AT_FROM_UPLINK);
	begin(skb, s);
	s->packet.unconfirmed = s->missed;
	pkt = &s->packet;
	hit = &s->hit;
	if (parse_eth(skb, pkt) || parse_ipv4(skb, pkt))
		return TC_ACT_UNSPEC; /* the host's stack judges what it receives */
	if (pkt->error)
		return finish(skb, s, error_in(skb, pkt, hit), AT_FROM_UPLINK);
	return finish(skb, s, from_outside(skb, pkt, hit), AT_FROM_UPLINK);
}

/* host_error_inside: what the host says to an endpoint about a packet to a published port
 * quotes what that was translated to. All else of the host's goes in.
 */
static __always_inline int host_error_inside(struct __sk_buff *skb, struct packet *pkt,
					     struct hit *hit)
{
	int ret;

	if (parse_eth(skb, pkt) || parse_ipv4(skb, pkt) || !pkt->error)
		return TO_STACK;
	ret = translate_error(skb, pkt, hit, ERROR_HOST_INSIDE);
	return ret ? ret : TO_STACK;
}

/* forwarded_in: what the host forwards into a network for others must be the answer to what
 * an endpoint sent to one of the host's addresses.
 */
static __always_inline int forwarded_in(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) || parse_eth(skb, pkt) || parse_ipv4(skb, pkt) ||
	    !trackable(pkt))
		return -DROP_FORWARDED;
	if (conversation(pkt, ANY_DEVICE, hit) != FLOW_HIT || hit->kind != FLOW_LOCAL)
		return -DROP_FORWARDED;
	return TO_STACK;
}

/* is_icmp: a look at one byte, for what mostly is not. */
static __always_inline int is_icmp(struct __sk_buff *skb)
{
	__u32 off = L3_OFF + __builtin_offsetof(struct iphdr, protocol);
	__u8 proto = 0;

	return skb->protocol == bpf_htons(ETH_P_IP) && !bpf_skb_load_bytes(skb, off, &proto, 1) &&
	       proto == IPPROTO_ICMP;
}

/* to_bridge: egress of a network's bridge. Into a network goes what ebnet sends and
 * what the host itself does; not what the host forwards for others.
 */
SEC("tc")
int to_bridge(struct __sk_buff *skb)
{
	struct scratch *s;
	struct packet *pkt;
	struct hit *hit;

	if (skb->tc_index == MARK_DONE) {
		skb->tc_index = 0;
		return TC_ACT_UNSPEC;
	}
	if (!skb->ingress_ifindex && !is_icmp(skb))
		return TC_ACT_UNSPEC;
	s = room();
	if (!s)
		return TC_ACT_SHOT;
	begin(skb, s);
	pkt = &s->packet;
	hit = &s->hit;
	if (!skb->ingress_ifindex)
		return finish(skb, s, host_error_inside(skb, pkt, hit), AT_TO_BRIDGE);
	return finish(skb, s, forwarded_in(skb, pkt, hit), AT_TO_BRIDGE);
}

/* clock is attached nowhere: run once, it tells Go the time that stamps are in. */
SEC("tc")
int clock(struct __sk_buff *skb)
{
	return bpf_jiffies64() + clock_offset;
}

/* start_sweep is attached nowhere: run once, it starts what reclaims. Returns 0 if it runs. */
SEC("tc")
int start_sweep(struct __sk_buff *skb)
{
	return sweep_start();
}

/* forget is attached nowhere: run on a tuple, it ends that conversation. Returns whether
 * there was one.
 */
SEC("tc")
int forget(struct __sk_buff *skb)
{
	struct event e;
	struct tuple key;
	struct flow *f;

	if (bpf_skb_load_bytes(skb, 0, &key, sizeof(key)))
		return 0;
	f = flow_get(&key);
	if (!f)
		return 0;
	if (listened() && closed_why(f) != CLOSE_NONE)
		tell_close(&e, f, &key, CLOSE_FLUSHED);
	flow_delete_pair(f, &key);
	return 1;
}

/* connect4: a process of the host connects. */
SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct target to = target4(ctx);

	if (toward_endpoint(ctx, &to, ctx->sk ? ctx->sk->src_ip4 : 0))
		put_target4(ctx, &to);
	return ALLOWED;
}

/* connect6: the same of a socket of IPv6, to an IPv4-mapped address. */
SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct target to = target6(ctx);

	if (toward_endpoint(ctx, &to, ctx->sk ? ctx->sk->src_ip4 : 0))
		put_target6(ctx, &to);
	return ALLOWED;
}

/* sendmsg4: it sends a datagram to an address it names. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct target to = target4(ctx);

	if (toward_endpoint(ctx, &to, ctx->msg_src_ip4))
		put_target4(ctx, &to);
	return ALLOWED;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct target to = target6(ctx);

	if (toward_endpoint(ctx, &to, ctx->msg_src_ip6[3]))
		put_target6(ctx, &to);
	return ALLOWED;
}

/* recvmsg4: it asks where a datagram came from. */
SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct target at = target4(ctx);

	if (as_called(ctx, &at))
		put_target4(ctx, &at);
	return ALLOWED;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct target at = target6(ctx);

	if (as_called(ctx, &at))
		put_target6(ctx, &at);
	return ALLOWED;
}

/* getpeername4: it asks whom it is connected to. */
SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct target at = target4(ctx);

	if (as_called(ctx, &at))
		put_target4(ctx, &at);
	return ALLOWED;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct target at = target6(ctx);

	if (as_called(ctx, &at))
		put_target6(ctx, &at);
	return ALLOWED;
}

/* post_bind4: it has bound a port. */
SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *ctx)
{
	struct addr addr;

	addr_from_v4(&addr, ctx->src_ip4);
	return may_bind(ctx, &addr);
}

/* post_bind6: of IPv6, which takes IPv4 too where it is bound to any or a mapped address. */
SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *ctx)
{
	struct addr addr;
	int any = !(ctx->src_ip6[0] | ctx->src_ip6[1] | ctx->src_ip6[2] | ctx->src_ip6[3]);

	if (!any && (ctx->src_ip6[0] || ctx->src_ip6[1] || ctx->src_ip6[2] != V4_MAPPED))
		return ALLOWED;
	if (ipv6_only(ctx))
		return ALLOWED;
	addr_from_v4(&addr, ctx->src_ip6[3]);
	return may_bind(ctx, &addr);
}
