/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Conversations: look up, age, confirm, reclaim. Creating one is nat.h's business.
 *
 * Two tables: a conversation starts in flows_new (LRU) and moves to flows once both
 * sides have confirmed it. The move inserts into flows before it deletes from
 * flows_new, and readers look into flows, flows_new, and flows again, so they do not
 * miss what moves meanwhile.
 */
#pragma once
#include "config.h"
#include "maps.h"
#include "packet.h"

/* Keeps the compiler from moving reads and writes of shared entries across. */
#define barrier() asm volatile("" ::: "memory")

/* Functions that are not static are verified once, not once a call (Linux 5.6). They
 * take their arguments as plain memory, hence the tests for null.
 */

/* UDP that still talks both ways after this long is a stream (seconds). */
#define UDP_STREAM_AFTER 2

enum lookup {
	FLOW_MISS = 0, /* nothing, or nothing that still counts */
	FLOW_HIT = 1,
	FLOW_TOMBSTONE = 2, /* a living conversation whose port was unpublished */
};

/* tuple_tag folds a key to 64 bits. It is kept in the value because the kernel
 * reuses elements of a hash at once: a value that was looked up may turn into
 * another flow's while it is read. The tag then no longer fits the key.
 */
static __always_inline __u64 tuple_tag(const struct tuple *t)
{
	__u64 a =
		((__u64)t->src.w[0] << 32 | t->src.w[1]) ^ ((__u64)t->src.w[2] << 32 | t->src.w[3]);
	__u64 b =
		((__u64)t->dst.w[0] << 32 | t->dst.w[1]) ^ ((__u64)t->dst.w[2] << 32 | t->dst.w[3]);
	__u64 c = (__u64)t->sport << 48 | (__u64)t->dport << 32 | t->proto << 8 | t->scope;

	return (a * 0x9e3779b97f4a7c15ULL) ^ (b * 0xc2b2ae3d27d4eb4fULL) ^ c;
}

static __always_inline __u32 generation(__u32 slot)
{
	__u32 *gen = bpf_map_lookup_elem(&gens, &slot);

	return gen ? *gen : 0;
}

/* timeout_of returns for how many jiffies a conversation may be silent. */
static __always_inline __u64 timeout_of(__u8 proto, __u32 seen, __u32 peer_seen)
{
	if (proto == IPPROTO_ICMP)
		return (__u64)timeout_icmp * hz;
	if (proto == IPPROTO_UDP)
		return (__u64)(seen && peer_seen ? timeout_udp_replied : timeout_udp_unreplied) *
		       hz;
	if ((seen | peer_seen) & SEEN_RST || seen & peer_seen & SEEN_FIN)
		return (__u64)timeout_tcp_closed * hz;
	if ((seen | peer_seen) & SEEN_FIN)
		return (__u64)timeout_tcp_half_closed * hz;
	if (seen & peer_seen & SEEN_SYN)
		return (__u64)timeout_tcp_established * hz;
	return (__u64)timeout_tcp_syn * hz;
}

static __always_inline int flow_closed(const struct flow *f, __u8 proto)
{
	return proto == IPPROTO_TCP &&
	       ((f->seen | f->peer_seen) & SEEN_RST || f->seen & f->peer_seen & SEEN_FIN);
}

/* flow_get finds the entry of a key in either table. The key must be on the stack or in
 * a map: Linux 6.1 takes no memory that a separately verified function was given.
 */
static __always_inline struct flow *flow_get(const struct tuple *key)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);

	if (!f)
		f = bpf_map_lookup_elem(&flows_new, key);
	return f ? f : bpf_map_lookup_elem(&flows, key);
}

/* flow_peer finds the entry of the other direction, in either table. */
static __always_inline struct flow *flow_peer(const struct flow *f, struct tuple *peer_key)
{
	tuple_reverse(peer_key, &f->xlat);
	return flow_get(peer_key);
}

/* flow_remaining returns for how many more jiffies the conversation of f lives, by
 * the later of both directions' time stamps; 0 or less: it is over. Only called
 * where f's own stamp does not settle it, since it costs a second lookup.
 */
static __noinline __s64 flow_remaining(struct flow *f, __u64 now)
{
	struct tuple peer_key;
	struct flow *peer;
	__u64 last;

	if (!f)
		return 0;
	last = f->last_seen;
	peer = flow_peer(f, &peer_key);
	if (peer && (__s64)(peer->last_seen - last) > 0)
		last = peer->last_seen;
	return (__s64)(last + timeout_of(f->xlat.proto, f->seen, f->peer_seen) - now);
}

/* flow_alive: by its own stamp first, by both if that is too old. */
static __always_inline int flow_alive(struct flow *f, __u64 now)
{
	if ((__s64)(now - f->last_seen) < (__s64)timeout_of(f->xlat.proto, f->seen, f->peer_seen))
		return 1;
	return flow_remaining(f, now) > 0;
}

/* flow_stale: may another conversation have this key? */
static __always_inline int flow_stale(struct flow *f, __u64 now)
{
	return generation(f->slot) != f->gen || !flow_alive(f, now);
}

/* flow_delete returns whether it was there among the confirmed. */
static __always_inline int flow_delete(const struct tuple *key)
{
	int err = bpf_map_delete_elem(&flows, key);

	bpf_map_delete_elem(&flows_new, key);
	return !err;
}

/* share_return gives the owner of a slot the room of a confirmed conversation back. The
 * shares of a slot begin anew with each generation.
 */
static __always_inline void share_return(__u32 slot, __u32 gen)
{
	struct share *share = bpf_map_lookup_elem(&shares, &slot);

	if (share && generation(slot) == gen)
		__sync_fetch_and_add(&share->held, -1);
}

/* share_take takes room for one, if f's owner has not too much already: one endpoint must
 * not fill the table for all. What is refused stays where new conversations may push it
 * out.
 */
static __always_inline int share_take(struct flow *f)
{
	__u32 slot = f->slot;
	struct share *share = bpf_map_lookup_elem(&shares, &slot);

	if (!share)
		return 0;
	if (share->held < (__s32)flows_share) {
		__sync_fetch_and_add(&share->held, 1);
		return 1;
	}
	if (!f->refused) {
		f->refused = 1;
		__sync_fetch_and_add(&share->refused, 1);
	}
	return 0;
}

/* flow_delete_pair frees the reply key last: it is what reserves the port. */
static __noinline int flow_delete_pair(struct flow *f, struct tuple *key)
{
	struct tuple peer_key;
	__u32 slot, gen, half;

	if (!f || !key)
		return 0;
	tuple_reverse(&peer_key, &f->xlat);
	slot = f->slot;
	gen = f->gen;
	half = f->half;
	barrier();
	if (f->tag != tuple_tag(key))
		return 0; /* the element has become another flow's, and so would its peer */
	if (half == HALF_ORIG) {
		if (flow_delete(key))
			share_return(slot, gen);
		flow_delete(&peer_key);
	} else {
		if (flow_delete(&peer_key))
			share_return(slot, gen);
		flow_delete(key);
	}
	return 0;
}

/* way_kept notes that the packet's flow has been looked at, for a second. */
static __always_inline void way_kept(const struct packet *pkt)
{
	struct tuple key = pkt->tuple;
	struct flow *f = flow_get(&key);

	if (f)
		f->way_checked = pkt->now;
}

/* is_tombstone: of what is void, does this keep its tuple closed? See flow_void(). */
static __always_inline int is_tombstone(const struct flow *f)
{
	return (f->kind == FLOW_DNAT || f->kind == FLOW_DIRECT) && f->xlat.proto == IPPROTO_UDP;
}

/* stand_in_line tells the sweeper of the conversation. 0: done. */
static __always_inline int stand_in_line(struct scratch *s)
{
	__u32 zero = 0;
	struct sweeper *sw = bpf_map_lookup_elem(&sweepers, &zero);

	if (!sw)
		return -1;
	s->place = __sync_fetch_and_add(&sw->tail, 1);
	s->queued.orig_key = s->orig_key;
	s->queued.created = s->orig.created;
	return bpf_map_update_elem(&sweep_queue, &s->place, &s->queued, BPF_NOEXIST);
}

/* unconfirm takes the original direction back out of flows. */
static __always_inline void unconfirm(struct scratch *s)
{
	int err = bpf_map_delete_elem(&flows, &s->orig_key);

	if (!err)
		share_return(s->orig.slot, s->orig.gen);
}

/* flow_confirm moves a conversation from flows_new to flows. f is the entry of key in
 * flows_new and peer that of the other direction. If there is no room it stays where it is, and the next packet tries
 * again; if another CPU is moving it too, the insertion of the original direction
 * decides which one does.
 */
static __noinline int flow_confirm(struct flow *f, struct tuple *key, struct flow *peer)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s || !f || !key || !peer)
		return 0;
	tuple_reverse(&s->other_key, &f->xlat);
	if (f->half == HALF_ORIG) {
		s->orig_key = *key;
		s->reply_key = s->other_key;
		s->orig = *f;
		s->reply = *peer;
	} else {
		s->orig_key = s->other_key;
		s->reply_key = *key;
		s->orig = *peer;
		s->reply = *f;
	}
	barrier();
	if (f->tag != tuple_tag(key) || peer->tag != tuple_tag(&s->other_key))
		return 0; /* an element was reused while it was copied */
	if (!share_take(f))
		return 0;
	if (bpf_map_update_elem(&flows, &s->orig_key, &s->orig, BPF_NOEXIST)) {
		share_return(s->orig.slot, s->orig.gen);
		return 0;
	}
	if (bpf_map_update_elem(&flows, &s->reply_key, &s->reply, BPF_NOEXIST)) {
		unconfirm(s);
		return 0;
	}
	if (stand_in_line(s)) {
		bpf_map_delete_elem(&flows, &s->reply_key);
		unconfirm(s);
		return 0;
	}
	/* Whoever ended it meanwhile has not seen the reply direction. */
	if (!bpf_map_lookup_elem(&flows, &s->orig_key))
		bpf_map_delete_elem(&flows, &s->reply_key);
	bpf_map_delete_elem(&flows_new, &s->orig_key);
	bpf_map_delete_elem(&flows_new, &s->reply_key);
	return 0;
}

/* flow_confirmed: have both sides seen enough of each other (TCP: the originator's ACK of
 * a SYN-ACK; UDP: a stream both ways; ICMP never)? Asked for each packet until the move
 * succeeds, since the kernel may have no memory at the moment.
 */
static __always_inline int flow_confirmed(struct packet *pkt, struct flow *f)
{
	__u32 by_originator = f->half == HALF_ORIG ? f->seen : f->peer_seen;

	if (pkt->tuple.proto == IPPROTO_TCP)
		return by_originator & SEEN_ACK && f->seen & f->peer_seen & SEEN_SYN;
	return pkt->tuple.proto == IPPROTO_UDP && f->peer_seen &&
	       pkt->now - f->created > (__u64)UDP_STREAM_AFTER * hz;
}

/* flow_note records what the packet shows that was not known yet, in both directions'
 * entries, so that either one alone tells the state. peer is the other one's if it is known.
 * Two packets that close both directions at one moment may both be taken for the last one.
 */
static __always_inline void flow_note(struct packet *pkt, struct flow *f, struct flow *peer)
{
	__u32 news = pkt->seen & ~f->seen;
	struct tuple peer_key;
	int open;

	if (!news)
		return;
	open = news & (SEEN_FIN | SEEN_RST) && !flow_closed(f, pkt->tuple.proto);
	__sync_fetch_and_or((__u32 *)&f->seen, news);
	if (open && flow_closed(f, pkt->tuple.proto))
		pkt->news |= NEWS_CLOSED;
	if (!peer)
		peer = flow_peer(f, &peer_key);
	if (peer)
		__sync_fetch_and_or((__u32 *)&peer->peer_seen, news);
}

/* flow_read copies what a packet needs of f, found under key. Returns 0 if the entry has become another
 * flow's meanwhile: its tag is written first, and read last here.
 */
static __always_inline int flow_read(const struct tuple *key, struct flow *f, struct hit *hit)
{
	hit->xlat = f->xlat;
	hit->oif = f->oif;
	hit->way_checked = f->way_checked;
	__builtin_memcpy(hit->dmac, f->dmac, ETH_ALEN);
	__builtin_memcpy(hit->smac, f->smac, ETH_ALEN);
	hit->half = f->half;
	hit->kind = f->kind;
	hit->slot = f->slot;
	hit->gen = f->gen;
	barrier();
	return f->tag == tuple_tag(key);
}

/* endpoint_get finds a container by its address, which is copied because of what
 * flow_get() says about keys.
 */
static __always_inline struct endpoint *endpoint_get(const struct addr *at)
{
	struct addr key = *at;

	return bpf_map_lookup_elem(&endpoints, &key);
}

/* network_toward finds the network of the endpoint with an address. */
static __always_inline struct network *network_toward(const struct addr *at)
{
	struct endpoint *ep = endpoint_get(at);

	return ep ? bpf_map_lookup_elem(&networks, &ep->network) : 0;
}

/* flow_void decides about an entry whose owner is gone. A datagram that a container
 * sends to a client of an unpublished port would look like the first one of a
 * conversation of its own, and its translation could open the port again: as long as
 * it goes on sending them and is the same container, the tuple stays closed.
 * (TCP: a late packet opens nothing.)
 */
static __noinline int flow_void(struct packet *pkt, struct flow *f)
{
	struct endpoint *ep;

	if (!pkt || !f)
		return FLOW_MISS;
	ep = endpoint_get(&pkt->tuple.src);
	if (!is_tombstone(f) || f->half != HALF_REPLY || !ep || ep->ifindex != f->iif ||
	    !flow_alive(f, pkt->now))
		return FLOW_MISS;
	if (pkt->now - f->last_seen >= hz)
		f->last_seen = pkt->now;
	return FLOW_TOMBSTONE;
}

/* flow_touch checks that f, found in the table under the packet's tuple, still counts,
 * and brings it up to date. peer is the other direction's entry, null where it has not been
 * looked up. Returns enum lookup; fills hit on FLOW_HIT.
 */
static __always_inline int flow_touch(struct packet *pkt, struct flow *f, struct flow *peer,
				      struct hit *hit)
{
	if (!flow_read(&pkt->tuple, f, hit))
		return FLOW_MISS;
	if (generation(f->slot) != f->gen)
		return flow_void(pkt, f);
	if (pkt->opens && flow_closed(f, pkt->tuple.proto))
		return FLOW_MISS;
	if (pkt->now - f->last_seen >= hz) {
		if (!flow_alive(f, pkt->now))
			return FLOW_MISS;
		f->last_seen = pkt->now;
	}
	flow_note(pkt, f, peer);
	/* Not atomic: when one direction is spread over CPUs a count may be lost. */
	f->packets++;
	f->bytes += pkt->len;
	return FLOW_HIT;
}

/* flow_half finds the other half of the embryonic f, null if it has none: the LRU evicts them one
 * by one, and half a conversation would answer nobody and hold no port. The order of the
 * lookups is that of a move to the other table.
 */
static __always_inline struct flow *flow_half(struct flow *f)
{
	struct tuple peer_key;
	struct flow *peer;

	tuple_reverse(&peer_key, &f->xlat);
	peer = bpf_map_lookup_elem(&flows_new, &peer_key);
	if (!peer)
		peer = bpf_map_lookup_elem(&flows, &peer_key);
	return peer && peer->tag == tuple_tag(&peer_key) ? peer : 0;
}

/* Whom the packets of a direction come from, where it is no container's device. */
#define OUTSIDE 0
#define ANY_DEVICE 0xffffffff

/* comes_from: nobody speaks in another's place, and what does changes no state. */
static __always_inline int comes_from(const struct flow *f, __u32 iif)
{
	return iif == ANY_DEVICE || f->iif == iif;
}

/* flow_find_new is flow_find for what flows does not have. */
static __noinline int flow_find_new(struct packet *pkt, __u32 iif, struct hit *hit)
{
	struct flow *f, *peer;
	struct tuple key;
	int ret;

	if (!pkt || !hit)
		return FLOW_MISS;
	key = pkt->tuple;
	f = bpf_map_lookup_elem(&flows_new, &key);
	if (!f) { /* it may have moved */
		f = bpf_map_lookup_elem(&flows, &key);
		pkt->unknown = !f;
		return f && comes_from(f, iif) ? flow_touch(pkt, f, 0, hit) : FLOW_MISS;
	}
	if (!comes_from(f, iif))
		return FLOW_MISS;
	peer = flow_half(f);
	if (!peer) {
		bpf_map_delete_elem(&flows_new, &key);
		return FLOW_MISS;
	}
	ret = flow_touch(pkt, f, peer, hit);
	if (ret == FLOW_HIT && flow_confirmed(pkt, f))
		flow_confirm(f, &key, peer);
	return ret;
}

/* flow_find looks the packet's tuple up: one lookup where the conversation is
 * confirmed and known to be none of a SYN, more where it is new. iif is the device that packets of this direction must
 * come from: a container's, OUTSIDE or ANY_DEVICE. Returns enum lookup; fills hit on FLOW_HIT.
 */
__noinline int flow_find(struct packet *pkt, __u32 iif, struct hit *hit)
{
	struct tuple key;
	struct flow *f;

	if (!pkt || !hit)
		return FLOW_MISS;
	if (pkt->unconfirmed || (pkt->opens && pkt->tuple.proto == IPPROTO_TCP))
		return flow_find_new(pkt, iif, hit); /* which looks there second */
	key = pkt->tuple;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		return flow_find_new(pkt, iif, hit);
	if (!comes_from(f, iif))
		return FLOW_MISS;
	return flow_touch(pkt, f, 0, hit);
}
