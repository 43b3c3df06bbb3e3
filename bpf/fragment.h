/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Datagrams in fragments: the first one has the ports and decides, the others follow it
 * by source, destination, protocol and identification (RFC 791 3.2). One that comes
 * before the first cannot be translated, and a program cannot hold a packet: it is
 * dropped, or left to the host if it may be the host's, and counted as DROP_FRAGMENT.
 */
#pragma once
#include "flow.h"
#include "maps.h"
#include "packet.h"

/* Seconds from the first to the last fragment of a datagram; as the kernel's reassembly. */
#define FRAGMENT_LIFE 30

static __always_inline void fragment_key(struct fragment_key *key, const struct packet *pkt)
{
	key->src = pkt->tuple.src;
	key->dst = pkt->tuple.dst;
	key->ifindex = pkt->ifindex;
	key->id = pkt->ip_id;
	key->proto = pkt->tuple.proto;
	key->pad = 0;
}

static __always_inline int fragment_fresh(const struct packet *pkt, const struct fragment *f)
{
	return (__u32)pkt->now - f->stamp < FRAGMENT_LIFE * hz;
}

/* fragment_note keeps what the first fragment was translated to. */
__noinline int fragment_note(struct packet *pkt, struct hit *hit)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct fragment *early;

	if (!s || !pkt || !hit)
		return 0;
	fragment_key(&s->fragment_key, pkt);
	early = bpf_map_lookup_elem(&fragments, &s->fragment_key);
	if (early && !early->kind && fragment_fresh(pkt, early))
		pkt->news |= NEWS_FRAGMENT; /* which the host got */
	s->fragment.xlat = hit->xlat;
	s->fragment.oif = hit->oif;
	s->fragment.slot = hit->slot;
	s->fragment.gen = hit->gen;
	s->fragment.stamp = pkt->now;
	__builtin_memcpy(s->fragment.dmac, hit->dmac, ETH_ALEN);
	__builtin_memcpy(s->fragment.smac, hit->smac, ETH_ALEN);
	s->fragment.kind = hit->kind;
	s->fragment.half = hit->half;
	bpf_map_update_elem(&fragments, &s->fragment_key, &s->fragment, BPF_ANY);
	return 0;
}

/* fragment_early remembers that a fragment came before its first one. */
__noinline int fragment_early(struct packet *pkt)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s || !pkt)
		return 0;
	fragment_key(&s->fragment_key, pkt);
	__builtin_memset(&s->fragment, 0, sizeof(s->fragment));
	s->fragment.stamp = pkt->now;
	bpf_map_update_elem(&fragments, &s->fragment_key, &s->fragment, BPF_NOEXIST);
	return 0;
}

/* fragment_find is flow_find for a later fragment. */
static __noinline int fragment_find(struct packet *pkt, struct hit *hit)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct fragment *f;

	if (!s || !pkt || !hit)
		return FLOW_MISS;
	fragment_key(&s->fragment_key, pkt);
	f = bpf_map_lookup_elem(&fragments, &s->fragment_key);
	if (!f || !f->kind || !fragment_fresh(pkt, f) || generation(f->slot) != f->gen)
		return FLOW_MISS;
	hit->xlat = f->xlat;
	hit->oif = f->oif;
	hit->way_checked = 0;
	__builtin_memcpy(hit->dmac, f->dmac, ETH_ALEN);
	__builtin_memcpy(hit->smac, f->smac, ETH_ALEN);
	hit->kind = f->kind;
	hit->half = f->half;
	hit->slot = f->slot;
	hit->gen = f->gen;
	return FLOW_HIT;
}

/* fragment_forget: what follows a first fragment of nobody's is nobody's. */
__noinline int fragment_forget(struct packet *pkt)
{
	struct fragment *f;
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s || !pkt)
		return 0;
	fragment_key(&s->fragment_key, pkt);
	f = bpf_map_lookup_elem(&fragments, &s->fragment_key);
	if (f && f->kind) /* not what fragment_early() keeps for the count */
		bpf_map_delete_elem(&fragments, &s->fragment_key);
	return 0;
}

/* conversation finds what the packet belongs to: flow_find(), for fragments too. */
__noinline int conversation(struct packet *pkt, __u32 iif, struct hit *hit)
{
	int ret;

	if (!pkt || !hit)
		return FLOW_MISS;
	if (pkt->part == LATER_FRAGMENT)
		return fragment_find(pkt, hit);
	ret = flow_find(pkt, iif, hit);
	if (ret == FLOW_HIT && pkt->part == FIRST_FRAGMENT)
		fragment_note(pkt, hit);
	return ret;
}
