/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Changing headers without breaking checksums, offloaded ones too.
 *
 * Where the transport checksum is left to the device (CHECKSUM_PARTIAL) the field holds the sum
 * of the pseudo header, which an address change must update and a port change must not. The
 * kernel's helpers know which case it is (BPF_F_PSEUDO_HDR tells them what the change is). Where
 * the kernel tells us too it is done in place, but for CHECKSUM_COMPLETE, where the device's sum of
 * the whole packet must follow.
 * The IPv4 header's own checksum is never offloaded and is computed here (RFC 1624).
 */
#pragma once
#include <bpf/bpf_core_read.h>
#include "flow.h"
#include "packet.h"

/* folded_sum returns sum in 16 bits. */
static __always_inline __u16 folded_sum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline void csum_replace(__sum16 *check, __be32 from, __be32 to)
{
	*check = ~folded_sum((__u64)(__u32)~from + to + (__u16) ~*check);
}

/* csum_forwarded updates the header's checksum for one address that changes and a TTL that
 * is lowered by one.
 */
static __always_inline void csum_forwarded(struct iphdr *ip, __be32 from, __be32 to)
{
	/* The TTL is the high half of its 16 bits. */
	__u64 change = (__u64)(__u32)~from + to + (__u16)~bpf_htons(1 << 8);

	ip->check = ~folded_sum(change + (__u16)~ip->check);
}

/* Of the kernel's struct sk_buff: who is to compute the transport checksum. CO-RE finds it. */
struct sk_buff___checksum {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

#define CHECKSUM_NONE 0
#define CHECKSUM_UNNECESSARY 1
#define CHECKSUM_COMPLETE 2
#define CHECKSUM_PARTIAL 3

/* Linux 6.2; nothing but a cast. */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/* checksum_state returns CHECKSUM_*; CHECKSUM_COMPLETE, which leaves all work to the helpers,
 * where the kernel does not tell.
 */
static __always_inline __u32 checksum_state(struct __sk_buff *skb)
{
	struct sk_buff___checksum *kernel;

	if (!bpf_cast_to_kern_ctx)
		return CHECKSUM_COMPLETE;
	kernel = bpf_cast_to_kern_ctx(skb);
	return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
}

/* l4_sum_replace changes a transport checksum as bpf_l4_csum_replace() does for an address and a
 * port, where nothing but the field has to change: state is not CHECKSUM_COMPLETE. Left to
 * the device (CHECKSUM_PARTIAL) the field is the sum of the pseudo header, not its
 * complement, and the port is none of its business.
 */
static __always_inline void l4_sum_replace(__sum16 *check, __u32 state, __u32 udp, __be32 from,
					   __be32 to, __be16 from_port, __be16 to_port)
{
	__u64 change = (__u64)(__u32)~from + to;
	__u16 sum;

	if (udp && !*check) /* none (RFC 768) */
		return;
	if (state == CHECKSUM_PARTIAL) {
		sum = folded_sum(change + *check);
	} else {
		change += (__u16)~from_port + (__u32)to_port;
		sum = ~folded_sum(change + (__u16) ~*check);
	}
	*check = udp && !sum ? 0xffff : sum;
}

/* l4_check returns where the transport checksum is, and the helper's flags for it:
 * a UDP checksum of zero means none (RFC 768) and must stay so.
 */
static __always_inline __u32 l4_check(const struct packet *pkt, __u64 *flags)
{
	*flags = 0;
	if (pkt->tuple.proto == IPPROTO_TCP)
		return pkt->l4_off + __builtin_offsetof(struct tcphdr, check);
	if (pkt->tuple.proto == IPPROTO_UDP) {
		*flags = BPF_F_MARK_MANGLED_0;
		return pkt->l4_off + __builtin_offsetof(struct udphdr, check);
	}
	return pkt->l4_off + __builtin_offsetof(struct icmp_echo, check);
}

static __always_inline int rewrite_addr(struct __sk_buff *skb, struct packet *pkt, __be32 from,
					__be32 to)
{
	__u64 flags;
	__u32 off = l4_check(pkt, &flags);

	/* ICMPv4 has no pseudo header, and only the first fragment has a checksum. */
	if (from == to || pkt->tuple.proto == IPPROTO_ICMP || pkt->part == LATER_FRAGMENT)
		return 0;
	return bpf_l4_csum_replace(skb, off, from, to, flags | BPF_F_PSEUDO_HDR | sizeof(to));
}

/* rewrite_port changes the 16 bits that are off bytes into the transport header. */
static __always_inline int rewrite_port(struct __sk_buff *skb, struct packet *pkt, __u32 off,
					__u32 from, __u32 to)
{
	__be16 port = to;
	__u64 flags;
	__u32 check = l4_check(pkt, &flags);

	if (from == to)
		return 0;
	if (bpf_l4_csum_replace(skb, check, from, to, flags | sizeof(port)))
		return -1;
	return bpf_skb_store_bytes(skb, pkt->l4_off + off, &port, sizeof(port), 0);
}

/* rewrite_ports: TCP and UDP have them at the same place; the echo identifier stands
 * in whichever of sport and dport is the requester's.
 */
static __always_inline int rewrite_ports(struct __sk_buff *skb, struct packet *pkt,
					 const struct tuple *to)
{
	const struct tuple *from = &pkt->tuple;

	if (from->proto == IPPROTO_ICMP)
		return rewrite_port(skb, pkt, __builtin_offsetof(struct icmp_echo, id),
				    from->sport | from->dport, to->sport | to->dport);
	if (rewrite_port(skb, pkt, 0, from->sport, to->sport))
		return -1;
	return rewrite_port(skb, pkt, sizeof(__be16), from->dport, to->dport);
}

/* rewrite_in_place changes ports and transport checksum where they can be written; 0: they
 * cannot, and nothing is changed.
 */
static __always_inline int rewrite_in_place(struct __sk_buff *skb, struct packet *pkt,
					    const struct tuple *to)
{
	__u32 state = checksum_state(skb), udp = pkt->tuple.proto == IPPROTO_UDP;
	const struct tuple *from = &pkt->tuple;
	__be16 *l4 = (void *)(long)skb->data + (pkt->l4_off & 127);
	__sum16 *check = l4 + (udp ? 3 : 8);

	if (state == CHECKSUM_COMPLETE || !pkt->ported || from->proto == IPPROTO_ICMP ||
	    (void *)(l4 + 9) > (void *)(long)skb->data_end)
		return 0;
	l4_sum_replace(check, state, udp, from->src.w[3], to->src.w[3], from->sport, to->sport);
	l4_sum_replace(check, state, udp, from->dst.w[3], to->dst.w[3], from->dport, to->dport);
	l4[0] = to->sport;
	l4[1] = to->dport;
	return 1;
}

/* rewrite_by_helpers does so by the kernel's helpers. 0: done. */
static __always_inline int rewrite_by_helpers(struct __sk_buff *skb, struct packet *pkt,
					      const struct tuple *to)
{
	if (rewrite_addr(skb, pkt, pkt->tuple.src.w[3], to->src.w[3]) ||
	    rewrite_addr(skb, pkt, pkt->tuple.dst.w[3], to->dst.w[3]))
		return -1;
	return pkt->ported ? rewrite_ports(skb, pkt, to) : 0;
}

/* rewrite turns the packet's tuple into hit->xlat: addresses, ports and checksums.
 * If it is being forwarded the Ethernet addresses become hit's and the TTL, which the
 * caller has found to be above 1, is lowered.
 * Returns CONTINUE or -DROP_REWRITE; pkt->tuple is the new one then.
 */
__noinline int rewrite(struct __sk_buff *skb, struct packet *pkt, struct hit *hit, __u32 forwarded)
{
	struct iphdr *ip;
	__be16 *eth;

	if (!pkt || !hit)
		return -DROP_REWRITE;
	if (!rewrite_in_place(skb, pkt, &hit->xlat) && rewrite_by_helpers(skb, pkt, &hit->xlat))
		return -DROP_REWRITE;
	eth = (void *)(long)skb->data;
	ip = (void *)eth + L3_OFF;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return -DROP_REWRITE;
	csum_replace(&ip->check, ip->saddr, hit->xlat.src.w[3]);
	csum_replace(&ip->check, ip->daddr, hit->xlat.dst.w[3]);
	ip->saddr = hit->xlat.src.w[3];
	ip->daddr = hit->xlat.dst.w[3];
	if (forwarded) {
		csum_replace(&ip->check, bpf_htonl(ip->ttl << 24), bpf_htonl((ip->ttl - 1) << 24));
		ip->ttl--;
		mac_copy(eth, hit->dmac);
		mac_copy(eth + 3, hit->smac);
	}
	pkt->tuple = hit->xlat;
	pkt->translated = 1;
	return CONTINUE;
}
