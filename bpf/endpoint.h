/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Containers: what they may send, and delivering to them. */
#pragma once
#include "config.h"
#include "flow.h"
#include "maps.h"
#include "packet.h"
#include "rewrite.h"
#include "uplink.h"

struct arp_ipv4 {
	__be16 hrd;
	__be16 pro;
	__u8 hln;
	__u8 pln;
	__be16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
} __attribute__((packed));

/* check_arp lets an endpoint speak for its own address only (0.0.0.0: it probes,
 * RFC 5227). The bridge does the rest.
 */
static __always_inline int check_arp(struct __sk_buff *skb, struct packet *pkt,
				     const struct device *dev)
{
	struct arp_ipv4 arp;
	__be32 spa;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return -DROP_MALFORMED;
	__builtin_memcpy(&spa, arp.spa, sizeof(spa));
	if (!mac_equal(arp.sha, dev->mac) || !mac_equal(pkt->smac, dev->mac))
		return -DROP_SPOOFED_ARP;
	return spa && spa != dev->addr4.w[3] ? -DROP_SPOOFED_ARP : TO_STACK;
}

/* check_source: an endpoint sends as itself. Returns CONTINUE or a drop. */
static __always_inline int check_source(struct packet *pkt, const struct device *dev)
{
	if (!mac_equal(pkt->smac, dev->mac))
		return -DROP_SPOOFED_MAC;
	return addr_equal(&pkt->tuple.src, &dev->addr4) ? CONTINUE : -DROP_SPOOFED_ADDR;
}

/* plays_dhcp: only a DHCP server sends this (RFC 2131 4.1), and no endpoint is one. */
static __always_inline int plays_dhcp(const struct packet *pkt)
{
	return pkt->tuple.proto == IPPROTO_UDP && pkt->tuple.sport == bpf_htons(67) &&
	       pkt->tuple.dport == bpf_htons(68);
}

/* to_many: broadcast and multicast, which the bridge floods. */
static __always_inline int to_many(const struct packet *pkt)
{
	return pkt->dmac[0] & 1 || (bpf_ntohl(pkt->tuple.dst.w[3]) >> 28) >= 14;
}

/* send_peer puts a packet into the namespace behind a veth, as received there; whose it
 * is was the bridge port's to judge.
 */
static __always_inline int send_peer(struct __sk_buff *skb, __u32 ifindex)
{
	if (bpf_skb_change_type(skb, PACKET_HOST))
		return -DROP_REWRITE;
	return redirected(bpf_redirect_peer(ifindex, 0));
}

/* deliver_neighbour hands a packet to another endpoint of the same network; nothing in
 * it changes but, where the sender used the gateway's Ethernet address, that.
 * Without the fast path it goes through the bridge as if the host sent it: a frame
 * that the bridge forwards between ports would meet the host's FORWARD rules.
 */
static __always_inline int deliver_neighbour(struct __sk_buff *skb, struct packet *pkt,
					     const struct endpoint *to, const struct network *net)
{
	if (net->flags & NET_NO_ICC)
		return -DROP_ICC;
	if (!mac_equal(pkt->dmac, to->mac) && bpf_skb_store_bytes(skb, 0, to->mac, ETH_ALEN, 0))
		return -DROP_REWRITE;
	if (!fast_path)
		return send_done(skb, net->bridge, 0);
	return send_peer(skb, to->ifindex);
}

/* to_kernel_in hands a packet for an endpoint to the kernel as if it had come in by the
 * network's bridge, which forwards: it answers that the packet is too big or too old, or
 * cuts it up. to_uplink() translates the answer.
 */
static __always_inline int to_kernel_in(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	struct network *net = network_toward(&hit->xlat.dst);
	int ret;

	if (!net)
		return -DROP_REDIRECT;
	ret = rewrite(skb, pkt, hit, 0);
	if (ret)
		return ret;
	if (bpf_skb_store_bytes(skb, 0, net->mac, ETH_ALEN, 0))
		return -DROP_REWRITE;
	return send_done(skb, net->bridge, BPF_F_INGRESS);
}

/* deliver_in translates a packet from outside as its flow says and hands it to the
 * endpoint, whose device and addresses the flow has had since it was opened.
 */
static __always_inline int deliver_in(struct __sk_buff *skb, struct packet *pkt, struct hit *hit)
{
	struct network *net;
	int ret;

	if (pkt->ttl <= 1 || !fits(skb, hit->oif))
		return to_kernel_in(skb, pkt, hit);
	ret = rewrite(skb, pkt, hit, 1);
	if (ret)
		return ret;
	if (fast_path)
		return send_peer(skb, hit->oif);
	net = network_toward(&pkt->tuple.dst);
	return net ? send_done(skb, net->bridge, 0) : -DROP_REDIRECT;
}

/* near_at finds a container by its IPv4 address, if it is the one at its place. The golden ratio
 * scatters networks whose containers have the same low bits, and leaves those of one apart.
 */
static __always_inline struct near *near_at(__be32 v4)
{
	__u32 place = bpf_ntohl(v4) * 0x9e3779b1U >> (32 - NEARS_BITS);
	struct near *near = bpf_map_lookup_elem(&nears, &place);

	return near && near->addr == v4 && v4 ? near : 0;
}

/* inner_near: may the address be one of a network? Most that are not are told by it. */
static __always_inline int inner_near(__be32 v4)
{
	__u32 p = bpf_ntohl(v4) >> 16, index = p >> 6;
	__u64 *word = bpf_map_lookup_elem(&inner, &index);

	return !word || *word >> (p & 63) & 1;
}

/* is_caller: has the endpoint with this slot ever used a published port from inside? */
static __always_inline int is_caller(__u32 slot)
{
	__u32 index = slot >> 6;
	__u64 *word = bpf_map_lookup_elem(&callers, &index);

	return !word || *word >> (slot & 63) & 1;
}

/* note_caller: the packet's sender does so now. A function of its own for its frame's sake. */
static __noinline int note_caller(struct packet *pkt)
{
	struct endpoint *ep;
	__u64 *word;
	__u32 index;

	if (!pkt || !(ep = endpoint_get(&pkt->tuple.src)))
		return 0;
	index = ep->slot >> 6;
	word = bpf_map_lookup_elem(&callers, &index);
	if (word && !(*word >> (ep->slot & 63) & 1))
		__sync_fetch_and_or(word, 1ULL << (ep->slot & 63));
	return 0;
}

/* network_of returns the id of the network that an address belongs to, 0 if none. */
static __always_inline __u32 network_of(const struct addr *addr)
{
	__u32 zero = 0, *id;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s || !inner_near(addr->w[3]))
		return 0;
	s->subnet_key.prefixlen = 128;
	s->subnet_key.addr = *addr;
	id = bpf_map_lookup_elem(&subnets, &s->subnet_key);
	return id ? *id : 0;
}
