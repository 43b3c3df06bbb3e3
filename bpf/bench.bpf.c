// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* What `ebnet bench` loads beside the datapath: a counter for the far end of a way, and the
 * limit that the datapath is compared with. Nothing here is part of a network that ebnet makes.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define PACKET_HOST 0

/* Written by Go: the destination port of the packets to count, 0: none. */
volatile __be16 sink_port;

/* Packets that the far end was given. Read by Go. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sunk SEC(".maps");

/* What the limit knows beforehand: containers and the way out. Written by Go before loading, so
 * that the programs look nothing up.
 */
struct limit_end {
	__be32 addr;
	__u32 ifindex; /* host side of its veth pair */
	__u8 mac[6]; /* of the container's side */
	__u8 pad[2];
};
const volatile struct limit_end limit_ends[2];

struct limit_way {
	__u32 uplink;
	__u8 uplink_mac[6];
	__u8 outside_mac[6];
	__u8 gateway_mac[6]; /* of the bridge, which is what containers send to */
	__u8 pad[2];
};
const volatile struct limit_way limit_way;

/* sink: ingress of the far end's device. Counts the packets of the measurement, by their
 * destination port, and drops them; all others pass.
 */
SEC("tc")
int sink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = data + ETH_HLEN + sizeof(*ip); /* or TCP: ports stand first */
	__u32 zero = 0;
	__u64 *count;

	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return TC_ACT_UNSPEC;
	if (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	if (!sink_port || udp->dest != sink_port)
		return TC_ACT_UNSPEC;
	count = bpf_map_lookup_elem(&sunk, &zero);
	if (count)
		++*count;
	return TC_ACT_SHOT;
}

static __always_inline void set_mac(__u8 *to, const volatile __u8 *mac)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		to[i] = mac[i];
}

/* to_end hands a packet to the container at the other end of a veth pair. */
static __always_inline int to_end(struct __sk_buff *skb, const volatile struct limit_end *to)
{
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(to->ifindex, 0);
}

/* limit_from_container: ingress of a veth's host side, where ebnet has from_container. It does
 * the least that forwards at all: both MACs and a redirect. TTL, checksum, source and policy are
 * left alone, since this is the limit and no datapath.
 */
SEC("tc")
int limit_from_container(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (ip->daddr == limit_ends[0].addr)
		return to_end(skb, &limit_ends[0]);
	if (ip->daddr == limit_ends[1].addr)
		return to_end(skb, &limit_ends[1]);
	set_mac(eth->h_dest, limit_way.outside_mac);
	set_mac(eth->h_source, limit_way.uplink_mac);
	return bpf_redirect(limit_way.uplink, 0);
}

/* limit_from_uplink: ingress of the uplink, where ebnet has from_uplink. */
SEC("tc")
int limit_from_uplink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (ip->daddr != limit_ends[0].addr)
		return TC_ACT_UNSPEC;
	set_mac(eth->h_dest, limit_ends[0].mac);
	set_mac(eth->h_source, limit_way.gateway_mac);
	return to_end(skb, &limit_ends[0]);
}
