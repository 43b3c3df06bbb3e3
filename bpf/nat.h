/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Opening a conversation: which source port, and both directions' entries.
 *
 * The insertion of the reply direction's key with BPF_NOEXIST is the reservation of
 * the port, so two conversations never share one.
 */
#pragma once
#include "config.h"
#include "flow.h"
#include "fragment.h"
#include "maps.h"
#include "packet.h"

/* Ports there are, and so steps that a search may take. */
#define PORTS 65536

/* Which source port a conversation may have. */
enum port_choice {
	PORT_OURS = 0, /* one of the set that translations may use */
	PORT_PEERS = 1, /* the client's own, or any: it is no port of the host */
	PORT_EXACT = 2, /* the packet's own */
	PORT_KEPT = 3, /* the packet's own, else one of the set */
};

enum reserved {
	RESERVED = 0,
	TAKEN = 1,
	FULL = 2,
};

static __always_inline __u32 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h >> 32;
}

static __always_inline struct port_word *port_word(__u8 proto, __u32 port)
{
	__u32 index = (proto == IPPROTO_UDP ? 1024 : 0) + (port >> 6);

	return bpf_map_lookup_elem(&ports, &index);
}

/* port_tracked: may a packet from outside to this port be ours? */
static __always_inline int port_tracked(__u8 proto, __be16 dport)
{
	__u32 port = bpf_ntohs(dport);
	struct port_word *word = port_word(proto, port);

	return word && (word->tracked | word->published) >> (port & 63) & 1;
}

/* port_published: is the port published on some address? */
static __always_inline int port_published(__u8 proto, __be16 dport)
{
	__u32 port = bpf_ntohs(dport);
	struct port_word *word = port_word(proto, port);

	return word && word->published >> (port & 63) & 1;
}

/* port_free_to_use: may a translation take this source port? An echo identifier is
 * shared with nobody's port, so any will do.
 */
static __always_inline int port_free_to_use(__u8 proto, __u32 port)
{
	struct port_word *word;

	if (proto == IPPROTO_ICMP)
		return port != 0; /* 0 would make question and answer one tuple */
	word = port_word(proto, port);
	return word && (word->source & ~word->published) >> (port & 63) & 1;
}

/* claim_over frees a key whose conversation is over; 0 if it lives. A closed TCP
 * conversation keeps its port until it times out.
 */
static __always_inline int claim_over(struct tuple *key, __u64 now)
{
	struct flow *f = flow_get(key);

	if (!f)
		return 1;
	if (!flow_stale(f, now))
		return 0;
	flow_delete_pair(f, key);
	return 1;
}

/* claim_again frees the key of the conversation that is being opened: of one that is
 * over, of a closed one, since the same two parties want it back, of one that another
 * endpoint had which had the address before, and of one with the host, if its port is
 * published by now.
 */
static __always_inline void claim_again(struct scratch *s, __u64 now)
{
	struct flow *f = flow_get(&s->orig_key);

	if (f && (f->iif != s->orig.iif || f->kind == FLOW_LOCAL ||
		  flow_closed(f, s->orig_key.proto) || flow_stale(f, now)))
		flow_delete_pair(f, &s->orig_key);
}

#define EEXIST 17

/* reserve inserts the reply direction. flows is
 * looked at after the insertion into flows_new, because a conversation on its way there is
 * in both for a moment.
 */
static __always_inline int reserve(struct scratch *s)
{
	/* An int: before Linux 6.4 only the low half of what a map's update returns is set. */
	int err = bpf_map_update_elem(&flows_new, &s->reply_key, &s->reply, BPF_NOEXIST);

	if (err)
		return err == -EEXIST ? TAKEN : FULL;
	if (!bpf_map_lookup_elem(&flows, &s->reply_key))
		return RESERVED;
	bpf_map_delete_elem(&flows_new, &s->reply_key);
	return TAKEN;
}

/* candidate returns the i-th port to try: first some that the source alone decides on
 * and that lie scattered, so that ports next to a range that is not allowed do not
 * attract everyone, then all in a row.
 */
#define SCATTERED 16

static __always_inline __u32 candidate(__u32 start, __u32 i)
{
	__u32 port = i < SCATTERED ? mix((__u64)start << 8 | i) : start + i;

	return port & (PORTS - 1);
}

/* What a step of the search is given; a context may not be kept in a map. */
struct step {
	struct __sk_buff *skb;
};

/* set_reply_port puts a candidate where the reply's destination port is: our source
 * port of a masquerade, the client's of a published port.
 */
static __always_inline void set_reply_port(struct scratch *s, __u32 port)
{
	s->reply_key.dport = bpf_htons(port);
	s->orig.xlat.sport = bpf_htons(port);
	s->reply.tag = tuple_tag(&s->reply_key);
}

/* host_socket: does a socket of the host talk, or listen, where the answers would come?
 * They would reach the container instead.
 */
static __noinline int host_socket(struct __sk_buff *skb, struct scratch *s)
{
	struct {
		__be32 saddr;
		__be32 daddr;
		__be16 sport;
		__be16 dport;
	} tuple = {
		.saddr = s->reply_key.src.w[3],
		.daddr = s->reply_key.dst.w[3],
		.sport = s->reply_key.sport,
		.dport = s->reply_key.dport,
	};
	struct bpf_sock *sk = 0;

	if (s->reply_key.proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, (void *)&tuple, sizeof(tuple), BPF_F_CURRENT_NETNS, 0);
	else if (s->reply_key.proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, (void *)&tuple, sizeof(tuple), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

/* try_port reserves a port, if it may be used and nobody has it. */
static __always_inline int try_port(struct __sk_buff *skb, struct scratch *s, __u32 port,
				    __u32 restricted)
{
	if (restricted && !port_free_to_use(s->reply_key.proto, port))
		return TAKEN;
	set_reply_port(s, port);
	if (!claim_over(&s->reply_key, s->search.now))
		return TAKEN;
	if (restricted && host_socket(skb, s))
		return TAKEN;
	return reserve(s);
}

/* try_own_port does so with the port that is most likely free: who has it is asked only if
 * somebody has.
 */
static __always_inline int try_own_port(struct __sk_buff *skb, struct scratch *s, __u32 port,
					__u32 restricted)
{
	int ret;

	if (restricted && !port_free_to_use(s->reply_key.proto, port))
		return TAKEN;
	set_reply_port(s, port);
	if (restricted && host_socket(skb, s))
		return TAKEN;
	ret = reserve(s);
	if (ret != TAKEN || !claim_over(&s->reply_key, s->search.now))
		return ret;
	return reserve(s);
}

static long search_step(__u32 i, struct step *step)
{
	__u32 zero = 0, port;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s)
		return 1;
	port = candidate(s->search.start, i);
	if (s->search.choice == PORT_PEERS && port < 1024)
		return 0;
	s->search.result = try_port(step->skb, s, port, s->search.choice != PORT_PEERS);
	return s->search.result != TAKEN;
}

/* A search that found nothing is not repeated for this many parts of a second. */
#define EXHAUSTED_FOR 4

/* search_port tries all candidates, unless that was in vain just now. */
static __always_inline int search_port(struct __sk_buff *skb, struct scratch *s, struct packet *pkt)
{
	struct step step = { .skb = skb };
	__u32 now = pkt->now, *stamp;

	s->service_key.addr = s->reply_key.src;
	s->service_key.addr.w[0] = s->reply_key.dst.w[3];
	s->service_key.port = s->reply_key.sport;
	s->service_key.proto = s->reply_key.proto;
	stamp = bpf_map_lookup_elem(&exhausted, &s->service_key);
	if (stamp && now - *stamp < hz / EXHAUSTED_FOR)
		return TAKEN;
	s->search.start = mix(hash_secret ^ ((__u64)pkt->tuple.src.w[3] << 32 |
					     (__u32)pkt->tuple.sport << 8 | pkt->tuple.proto));
	s->search.result = TAKEN;
	bpf_loop(PORTS + SCATTERED, search_step, &step, 0);
	if (s->search.result == TAKEN)
		bpf_map_update_elem(&exhausted, &s->service_key, &now, BPF_ANY);
	return s->search.result;
}

/* find_port reserves the reply direction in scratch with the wanted source port, or else
 * with the first that is free after a place that depends on the source alone (RFC 4787
 * REQ-1: one outside port for all peers). choice is an enum port_choice. Returns CONTINUE,
 * -DROP_NO_PORT or -DROP_TABLE_FULL.
 */
__noinline int find_port(struct __sk_buff *skb, struct packet *pkt, __u32 choice)
{
	__u32 zero = 0, result;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!pkt || !s)
		return -DROP_NO_PORT;
	s->search.now = pkt->now;
	s->search.choice = choice;
	result = try_own_port(skb, s, bpf_ntohs(pkt->tuple.sport), choice == PORT_OURS);
	if (result == TAKEN && choice != PORT_EXACT)
		result = search_port(skb, s, pkt);
	if (result == RESERVED)
		return CONTINUE;
	return result == FULL ? -DROP_TABLE_FULL : -DROP_NO_PORT;
}

static __always_inline void fill(struct flow *f, const struct tuple *key, const struct opening *o,
				 __u64 now, __u8 half)
{
	f->tag = tuple_tag(key);
	f->last_seen = now;
	f->created = now;
	f->packets = 0;
	f->bytes = 0;
	f->slot = o->slot;
	f->gen = o->gen;
	f->iif = half == HALF_ORIG ? o->orig_iif : o->reply_iif;
	f->oif = 0;
	f->way_checked = 0;
	f->seen = 0;
	f->peer_seen = 0;
	f->kind = o->kind;
	f->half = half;
	f->refused = 0;
	__builtin_memset(f->pad, 0, sizeof(f->pad));
}

/* open_begin writes the entries of a conversation whose first packet carries pkt->tuple
 * and shall carry s->orig.xlat. The ways out are left to the caller.
 */
static __always_inline void open_begin(struct scratch *s, struct packet *pkt,
				       const struct opening *o)
{
	s->orig_key = pkt->tuple;
	tuple_reverse(&s->reply_key, &s->orig.xlat);
	tuple_reverse(&s->reply.xlat, &pkt->tuple);
	fill(&s->orig, &s->orig_key, o, pkt->now, HALF_ORIG);
	fill(&s->reply, &s->reply_key, o, pkt->now, HALF_REPLY);
	s->orig.seen = pkt->seen;
	s->reply.peer_seen = pkt->seen;
	s->orig.packets = 1;
	s->orig.bytes = pkt->len;
}

/* way_in makes the endpoint's device the way out of one direction. */
static __always_inline void way_in(struct flow *f, __u32 ifindex, const __u8 *mac,
				   const struct network *net)
{
	f->oif = ifindex;
	__builtin_memcpy(f->dmac, mac, ETH_ALEN);
	__builtin_memcpy(f->smac, net->mac, ETH_ALEN);
}

/* way_back makes the way that a packet of an endpoint came the way out of the answers. */
static __always_inline void way_back(struct flow *f, const struct packet *pkt)
{
	f->oif = pkt->ifindex;
	__builtin_memcpy(f->dmac, pkt->smac, ETH_ALEN);
	__builtin_memcpy(f->smac, pkt->dmac, ETH_ALEN);
}

/* way_unknown leaves the way out to be looked up by the first packet that needs it. */
static __always_inline void way_unknown(struct flow *f)
{
	__builtin_memset(f->dmac, 0, ETH_ALEN);
	__builtin_memset(f->smac, 0, ETH_ALEN);
}

/* open_finish inserts the conversation in s: the reply direction, which reserves the
 * port, then the original one. If another CPU has opened it meanwhile, ours goes and
 * the packet belongs to that one. Returns CONTINUE and fills hit, or a drop.
 */
__noinline int open_finish(struct __sk_buff *skb, struct packet *pkt, struct hit *hit, __u32 choice)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	struct flow *winner;
	int ret;

	if (!pkt || !hit || !s)
		return -DROP_TABLE_FULL;
	if (!pkt->unknown)
		claim_again(s, pkt->now);
	ret = find_port(skb, pkt, choice);
	if (ret)
		return ret;
	if (bpf_map_update_elem(&flows_new, &s->orig_key, &s->orig, BPF_NOEXIST)) {
		bpf_map_delete_elem(&flows_new, &s->reply_key);
		winner = flow_get(&s->orig_key);
		return winner && flow_read(&pkt->tuple, winner, hit) ? CONTINUE : -DROP_TABLE_FULL;
	}
	flow_read(&pkt->tuple, &s->orig, hit);
	pkt->news |= NEWS_OPENED;
	if (pkt->part == FIRST_FRAGMENT)
		fragment_note(pkt, hit);
	return CONTINUE;
}
