/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The way out: where the host's routing sends a packet, and sending it there. */
#pragma once
#include "config.h"
#include "flow.h"
#include "maps.h"
#include "monitor.h"
#include "packet.h"
#include "rewrite.h"

#define AF_INET 2
#define FIB_SKIP_NEIGH (1U << 2) /* BPF_FIB_LOOKUP_SKIP_NEIGH, Linux 6.3 */
#define FIB_SRC (1U << 4) /* BPF_FIB_LOOKUP_SRC, Linux 6.7 */

/* On skb->tc_index between ebnet's own programs: this packet is translated and
 * allowed. Cleared when it enters and when it leaves ebnet's hands, so that nobody
 * else can set it.
 */
#define MARK_DONE 0xeb7e

/* redirected is the verdict of what a redirect helper says. */
static __always_inline int redirected(long code)
{
	return code == TC_ACT_REDIRECT ? REDIRECTED : -DROP_REDIRECT;
}

/* send_done sends a packet that is translated and allowed to a device. */
static __always_inline int send_done(struct __sk_buff *skb, __u32 ifindex, __u64 flags)
{
	skb->tc_index = MARK_DONE;
	return redirected(bpf_redirect(ifindex, flags));
}

/* A larger packet must be asked about; 1280 fits everywhere (RFC 8200). */
#define MTU_EVERYWHERE 1280

/* fits: is no segment of the packet too big for the device? */
static __always_inline int fits(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return skb->len <= MTU_EVERYWHERE ||
	       bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) == 0;
}

/* find_route asks the host's FIB about a packet with tuple t as if it came in by the
 * bridge, the only device that forwards. The length is left out: with GSO it says
 * nothing. Returns BPF_FIB_LKUP_RET_*, or negative; found() is the answer until the next
 * call.
 */
static __always_inline long find_route(struct __sk_buff *skb, struct packet *pkt,
				       const struct tuple *t, __u32 bridge, __u32 flags)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct bpf_fib_lookup *fib;

	if (!s)
		return -1;
	fib = &s->fib;
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = AF_INET;
	fib->l4_protocol = t->proto;
	fib->tos = pkt->tos;
	fib->ifindex = bridge;
	fib->ipv4_src = t->src.w[3];
	fib->ipv4_dst = t->dst.w[3];
	fib->sport = t->sport;
	fib->dport = t->dport;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), flags & fib_flags);
}

/* found returns what find_route() found; null only to please the verifier. */
static __always_inline struct bpf_fib_lookup *found(void)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	return s ? &s->fib : 0;
}

/* routed: does it leave the host by route, resolved neighbour or not? */
static __always_inline int routed(long result)
{
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* needs_kernel: must the kernel answer (time exceeded, fragmentation needed) or
 * fragment, rather than this packet being sent on to oif?
 */
static __always_inline int needs_kernel(struct __sk_buff *skb, struct packet *pkt, __u32 oif)
{
	return pkt->ttl <= 1 || !fits(skb, oif);
}

/* local_known returns what is known of an address, as enum local_kind, 0: nothing. The FIB does
 * not tell the host's own addresses from broadcast ones.
 */
static __always_inline __u32 local_known(const struct addr *addr, struct scratch *s)
{
	enum local_kind *kind;

	s->local_key = *addr;
	kind = bpf_map_lookup_elem(&locals, &s->local_key);
	return kind ? *kind : 0;
}

/* is_local checks an address that the FIB calls local, and remembers it for the socket
 * programs if it is new.
 */
static __always_inline int is_local(const struct addr *addr, struct scratch *s)
{
	enum local_kind kind = LOCAL_ADDRESS;
	__u32 known = local_known(addr, s);

	if (known == LOCAL_BROADCAST || bpf_ntohl(addr->w[3]) >> 28 >= 14)
		return 0;
	if (!known)
		bpf_map_update_elem(&locals, &s->local_key, &kind, BPF_NOEXIST);
	return 1;
}

/* source_address returns the address to masquerade as on the way out of oif: the
 * network's own if it has one, else what routing prefers, else the device's first, as Go
 * wrote it. 0: none.
 */
static __always_inline __be32 source_address(struct __sk_buff *skb, struct packet *pkt,
					     const struct network *net, __u32 oif)
{
	struct uplink *up = bpf_map_lookup_elem(&uplinks, &oif);
	struct bpf_fib_lookup *fib;

	if (!up)
		return 0;
	if (net->snat4.w[3])
		return net->snat4.w[3];
	if (pkt->preferred)
		return pkt->preferred;
	if (fib_flags & FIB_SRC &&
	    routed(find_route(skb, pkt, &pkt->tuple, net->bridge, FIB_SRC | FIB_SKIP_NEIGH)) &&
	    (fib = found()) && fib->ifindex == oif && fib->ipv4_src != pkt->tuple.src.w[3])
		return fib->ipv4_src;
	return up->addr4.w[3];
}

static __always_inline int send_neigh(struct __sk_buff *skb, const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh nh = { .nh_family = fib->family };

	if (fib->family == AF_INET)
		nh.ipv4_nh = fib->ipv4_dst;
	else /* IPv4 by an IPv6 next hop (RFC 5549) */
		__builtin_memcpy(nh.ipv6_nh, fib->ipv6_dst, sizeof(nh.ipv6_nh));
	skb->tc_index = MARK_DONE;
	return redirected(bpf_redirect_neigh(fib->ifindex, &nh, sizeof(nh), 0));
}

/* way_place fills the key under which a conversation's way out is shared, and returns where
 * that is among ways.
 */
static __always_inline __u32 way_place(struct way_key *key, const struct tuple *xlat, __u8 half,
				       __u32 ifindex, __u8 tos)
{
	__u32 reply = half == HALF_REPLY;

	key->source = xlat->src;
	key->dst = xlat->dst;
	key->ifindex = ifindex;
	key->port = reply ? xlat->sport : xlat->dport;
	key->proto = xlat->proto;
	key->class = (tos & 0xfc) | reply;
	return ((key->dst.w[3] ^ key->source.w[3] ^ ifindex << 16 ^ key->port) * 0x9e3779b1U) >>
	       (32 - WAYS_BITS);
}

static __always_inline int way_key_equal(const struct way_key *a, const struct way_key *b)
{
	const __u64 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

/* way_known finds the way that was looked up for s->way_key within the last second, if it is this
 * one. If the FIB gave conversations with one key different ones (several next hops, rules
 * about ports) each looks for itself.
 */
static __always_inline struct way *way_known(const struct scratch *s, __u32 place, __u32 oif,
					     const void *dmac, const void *smac, __u32 now)
{
	struct way *way = bpf_map_lookup_elem(&ways, &place);

	if (!way || now - way->checked >= hz || way->oif != oif ||
	    !way_key_equal(&way->key, &s->way_key))
		return 0;
	return mac_equal(way->dmac, dmac) && mac_equal(way->smac, smac) ? way : 0;
}

/* share_way tells the others. */
static __always_inline void share_way(struct packet *pkt, const struct hit *hit,
				      const struct bpf_fib_lookup *fib)
{
	__u32 zero = 0, place;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct way *way;

	if (!s)
		return;
	place = way_place(&s->way_key, &hit->xlat, hit->half, pkt->ifindex, pkt->tos);
	way = bpf_map_lookup_elem(&ways, &place);
	if (!way)
		return;
	way->key = s->way_key;
	way->checked = pkt->now;
	way->oif = fib->ifindex;
	__builtin_memcpy(way->dmac, fib->dmac, ETH_ALEN);
	__builtin_memcpy(way->smac, fib->smac, ETH_ALEN);
}

/* way_out makes what find_route() has just found for the packet the way out of its flow. */
static __always_inline void way_out(struct flow *f, const struct packet *pkt,
				    const struct bpf_fib_lookup *fib)
{
	f->oif = fib->ifindex;
	mac_copy(f->dmac, fib->dmac);
	mac_copy(f->smac, fib->smac);
	barrier();
	f->way_checked = pkt->now; /* last: it makes the others count */
}

/* remember_way does so where the flow is in the table already. */
static __always_inline void remember_way(const struct packet *pkt, const struct bpf_fib_lookup *fib)
{
	struct tuple key = pkt->tuple;
	struct flow *f = flow_get(&key);

	if (f)
		way_out(f, pkt, fib);
}

/* may_leave: does ebnet guard the device, and may endpoints go there of their own accord,
 * or do they only answer?
 */
static __always_inline int may_leave(__u32 oif, int answer)
{
	__u32 place = oif & (NEAR_UPLINKS - 1);
	struct near_uplink *near = bpf_map_lookup_elem(&near_uplinks, &place);
	struct uplink *up;

	if (near && near->ifindex == oif)
		return answer || !(near->flags & UPLINK_SIDE);
	up = bpf_map_lookup_elem(&uplinks, &oif);

	return up && (answer || !(up->flags & UPLINK_SIDE));
}

/* send_fresh: the flow's way out was looked up less than a second ago. */
static __always_inline int send_fresh(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	int ret;

	if (needs_kernel(skb, pkt, hit->oif))
		return TO_STACK;
	ret = rewrite(skb, pkt, hit, 1);
	if (ret)
		return ret;
	return send_done(skb, hit->oif, 0);
}

/* ask_about returns what the FIB says about an address as a destination. */
static __always_inline long ask_about(struct __sk_buff *skb, struct packet *pkt,
				      const struct addr *addr, __u32 bridge)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s)
		return -1;
	s->other_key = pkt->tuple;
	s->other_key.dst = *addr;
	return find_route(skb, pkt, &s->other_key, bridge, FIB_SKIP_NEIGH);
}

/* local_address: is it one of the host's own, and of it alone? */
static __always_inline int local_address(struct __sk_buff *skb, struct packet *pkt,
					 const struct addr *addr, __u32 bridge)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s || ask_about(skb, pkt, addr, bridge) != BPF_FIB_LKUP_RET_NOT_FWDED)
		return 0;
	if (!local_known(addr, s)) { /* the FIB says the same where there is no route at all */
		s->other_key.dst.w[3] = bpf_htonl(0xf0000001);
		if (!routed(find_route(skb, pkt, &s->other_key, bridge, FIB_SKIP_NEIGH)))
			return 0;
	}
	return is_local(addr, s);
}

/* lost_address: does the FIB say that it is not the host's? It says
 * nothing where forwarding was switched off on the bridge.
 */
static __always_inline int lost_address(struct __sk_buff *skb, struct packet *pkt,
					const struct addr *addr, __u32 bridge)
{
	long result = ask_about(skb, pkt, addr, bridge);

	return result != BPF_FIB_LKUP_RET_NOT_FWDED && result != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* flow_end ends the conversation that the packet belongs to, since the host has lost its address.
 */
static __always_inline void flow_end(const struct packet *pkt)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct tuple key = pkt->tuple;
	struct flow *f = flow_get(&key);

	if (!f)
		return;
	if (s && listened())
		tell_close(&s->event, f, &key, CLOSE_ADDRESS);
	flow_delete_pair(f, &key);
}

/* give_up ends a conversation whose address the host has lost. */
static __always_inline int give_up(struct packet *pkt, const struct hit *hit)
{
	struct addr lost = hit->xlat.src;

	flow_end(pkt);
	bpf_map_delete_elem(&locals, &lost);
	return -DROP_ADDRESS_GONE;
}

/* host_sourced: does it leave with an address of the host? */
static __always_inline int host_sourced(const struct hit *hit)
{
	return hit->kind == FLOW_SNAT || hit->kind == FLOW_DNAT;
}

/* check_source_kept looks, once a second, whether the host still has the address that the
 * conversation leaves with, where the way out is not looked up here (the path without
 * redirects). CONTINUE or a drop.
 */
static __always_inline int check_source_kept(struct __sk_buff *skb, struct packet *pkt,
					     struct hit *hit)
{
	struct network *net;

	if (!host_sourced(hit) || (__u32)pkt->now - hit->way_checked < hz)
		return CONTINUE;
	net = network_toward(&pkt->tuple.src);
	if (!net)
		return CONTINUE;
	if (lost_address(skb, pkt, &hit->xlat.src, net->bridge))
		return give_up(pkt, hit);
	way_kept(pkt);
	return CONTINUE;
}

/* hop_used: has this CPU sent something through the neighbour table to the same neighbour within
 * the last second? If not it is about to. Neighbours are kept among ways, under a
 * key that no conversation has.
 */
static __always_inline int hop_used(const struct packet *pkt, const struct hit *hit,
				    struct scratch *s)
{
	struct way_key *key = &s->way_key;
	struct way *way;
	__u32 place;

	__builtin_memset(key, 0, sizeof(*key));
	mac_copy(&key->dst, hit->dmac);
	key->ifindex = hit->oif;
	place = ((key->dst.w[0] ^ key->dst.w[1] ^ hit->oif) * 0x9e3779b1U) >> (32 - WAYS_BITS);
	way = bpf_map_lookup_elem(&ways, &place);
	if (!way)
		return 0;
	if ((__u32)pkt->now - way->checked < hz && way_key_equal(&way->key, key))
		return 1;
	__builtin_memset(way, 0, sizeof(*way));
	way->key = *key;
	way->checked = pkt->now;
	return 0;
}

/* send_first sends the first packet of a flow, whose way was found with it: by the neighbour
 * table, as once a second, unless another one to the same neighbour has been so.
 */
static __always_inline int send_first(struct __sk_buff *skb, struct packet *pkt, struct hit *hit,
				      struct scratch *s)
{
	__u32 place = way_place(&s->way_key, &hit->xlat, hit->half, pkt->ifindex, pkt->tos);
	int ret;

	if (way_known(s, place, hit->oif, hit->dmac, hit->smac, pkt->now))
		return send_fresh(skb, pkt, hit);
	share_way(pkt, hit, &s->fib);
	if (hop_used(pkt, hit, s))
		return send_fresh(skb, pkt, hit);
	ret = rewrite(skb, pkt, hit, 1);
	return ret ? ret : send_neigh(skb, &s->fib);
}

/* send_out translates the packet as its flow says and sends it to the uplink from the
 * veth's hook. Once a second the way out is looked up again, and that packet goes
 * through the neighbour table, so that the kernel goes on checking that the neighbour
 * is there. Answers of a published port are routed by the address they will have, so
 * that they leave by the uplink of the question.
 */
__noinline int send_out(struct __sk_buff *skb, struct packet *pkt, struct hit *hit, __u32 bridge)
{
	struct bpf_fib_lookup *fib;
	long result;
	__u32 zero = 0, oif;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	int ret;

	if (!pkt || !hit || !s)
		return -DROP_REDIRECT;
	if (pkt->way_found && !pkt->error && hit->oif == s->fib.ifindex &&
	    hit->way_checked == (__u32)pkt->now)
		return send_first(skb, pkt, hit, s);
	if (hit->oif && (__u32)pkt->now - hit->way_checked < hz)
		return send_fresh(skb, pkt, hit);
	if (host_sourced(hit) && lost_address(skb, pkt, &hit->xlat.src, bridge))
		return give_up(pkt, hit);
	result =
		find_route(skb, pkt, hit->half == HALF_REPLY ? &hit->xlat : &pkt->tuple, bridge, 0);
	fib = found();
	if (!fib || !routed(result))
		return TO_STACK; /* the kernel answers unreachable, or takes it itself */
	oif = fib->ifindex;
	if (!may_leave(oif, hit->half == HALF_REPLY))
		return -DROP_NOT_UPLINK;
	if (needs_kernel(skb, pkt, oif))
		return TO_STACK;
	if (result == BPF_FIB_LKUP_RET_SUCCESS) {
		remember_way(pkt, fib);
		share_way(pkt, hit, fib);
	}
	ret = rewrite(skb, pkt, hit, 1); /* the neighbour's output writes the addresses */
	return ret ? ret : send_neigh(skb, fib);
}
