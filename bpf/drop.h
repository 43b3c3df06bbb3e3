/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* How a program begins and ends: the one place where verdicts become TC codes, drops are
 * counted and what happened is told.
 */
#pragma once
#include "endpoint.h"
#include "maps.h"
#include "monitor.h"
#include "packet.h"

/* room returns this CPU's scratch. Null only to please the verifier. */
static __always_inline struct scratch *room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/* begin starts a packet; nothing is parsed yet. */
static __always_inline void begin(struct __sk_buff *skb, struct scratch *s)
{
	__builtin_memset(&s->packet, 0, sizeof(s->packet));
	s->packet.now = bpf_jiffies64() + clock_offset;
	s->packet.len = skb->len;
	s->packet.ifindex = skb->ifindex;
}

static __always_inline void count_dropped(struct drop_key *key, __u32 len)
{
	struct drop_count *count = bpf_map_lookup_elem(&drop_counts, key), first = {};
	__u32 gen = generation(key->slot);

	if (!count) {
		bpf_map_update_elem(&drop_counts, key, &first, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&drop_counts, key);
		if (!count)
			return;
	}
	/* Per CPU, softirqs off: no one else writes it. */
	if (count->gen != gen) {
		count->packets = 0;
		count->bytes = 0;
		count->gen = gen;
	}
	count->packets++;
	count->bytes += len;
}

/* An endpoint that a packet is of. */
struct party {
	__u32 ifindex; /* host side of its veth, 0: none is known */
	__u32 slot;
};

static __always_inline struct party party_by_device(__u32 ifindex)
{
	struct device *dev = bpf_map_lookup_elem(&devices, &ifindex);

	return (struct party){ .ifindex = ifindex, .slot = dev ? dev->slot : 0 };
}

static __always_inline struct party party_by_addr(const struct addr *at)
{
	struct near *near = near_at(at->w[3]);
	struct endpoint *ep;

	if (near)
		return (struct party){ near->ifindex, near->slot };
	ep = inner_near(at->w[3]) ? endpoint_get(at) : 0;
	return ep ? (struct party){ ep->ifindex, ep->slot } : (struct party){};
}

/* sender of a packet that a hook sees, as far as it is an endpoint. What comes from a container's
 * device is its, whatever address it has.
 */
static __always_inline struct party sender(const struct packet *pkt, __u32 ifindex, __u32 hook)
{
	struct party party = {};

	if (hook != AT_FROM_UPLINK && hook != AT_TO_BRIDGE)
		party = party_by_addr(&pkt->tuple.src);
	if (hook == AT_FROM_CONTAINER && party.ifindex != ifindex)
		party = party_by_device(ifindex);
	return party;
}

/* receiver of a packet: that of its conversation or published port, else by its address. */
static __always_inline struct party receiver(const struct packet *pkt, __u32 hook)
{
	if (hook == AT_TO_UPLINK || hook == AT_FROM_BRIDGE)
		return (struct party){};
	return pkt->toward ? party_by_device(pkt->toward) : party_by_addr(&pkt->tuple.dst);
}

/* tell_begin begins an event of a packet. */
static __always_inline struct event *tell_begin(struct __sk_buff *skb, struct scratch *s,
						__u32 kind, __u32 hook)
{
	struct event *e = &s->event;

	__builtin_memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->hook = hook;
	e->ifindex = skb->ifindex;
	return e;
}

static __always_inline void tell_drop(struct __sk_buff *skb, struct scratch *s,
				      const struct drop_key *key, __u32 from, __u32 to, __u32 hook)
{
	struct event *e = tell_begin(skb, s, key->reason, hook);
	struct packet *pkt = &s->packet;

	e->tuple = pkt->tuple;
	e->direction = key->direction;
	e->from = from;
	e->to = to;
	e->len = skb->len;
	e->eth_proto = pkt->eth_proto;
	e->translated = pkt->translated;
	__builtin_memcpy(e->smac, pkt->smac, ETH_ALEN);
	__builtin_memcpy(e->dmac, pkt->dmac, ETH_ALEN);
	tell(e);
}

/* drop counts a dropped packet and tells of it. */
__noinline int drop(struct __sk_buff *skb, __u32 hook, __u32 reason)
{
	struct scratch *s = room();
	int received = hook == AT_FROM_UPLINK || hook == AT_TO_BRIDGE;
	struct drop_key key = { .ifindex = skb->ifindex, .reason = reason };
	struct party from, to;

	if (!s)
		return 0;
	from = sender(&s->packet, skb->ifindex, hook);
	to = receiver(&s->packet, hook);
	key.direction = received ? RECEIVED : SENT;
	key.slot = received ? to.slot : from.slot;
	count_dropped(&key, skb->len);
	if (listened())
		tell_drop(skb, s, &key, from.ifindex, to.ifindex, hook);
	if (received || !to.slot || to.slot == from.slot)
		return 0;
	key.ifindex = 0;
	key.direction = RECEIVED;
	key.slot = to.slot;
	count_dropped(&key, skb->len);
	return 0;
}

/* drop_plain does so for what was not parsed, see fast.h. */
static __noinline int drop_plain(struct __sk_buff *skb, __u32 hook, __u32 reason)
{
	struct scratch *s = room();

	if (!s)
		return 0;
	begin(skb, s);
	if (!parse_eth(skb, &s->packet))
		parse_ipv4(skb, &s->packet);
	s->packet.translated = 1;
	return drop(skb, hook, reason);
}

static __always_inline void tell_open(struct __sk_buff *skb, struct scratch *s, __u32 hook)
{
	struct event *e = tell_begin(skb, s, EVENT_OPEN, hook);

	tell_flow(e, &s->orig_key, &s->orig, &s->reply);
}

/* tell_closed finds the packet's conversation again, by the way it was translated. */
static __always_inline void tell_closed(struct scratch *s)
{
	struct flow *f;

	tuple_reverse(&s->other_key, &s->hit.xlat);
	f = flow_get(&s->other_key);
	if (f)
		tell_close(&s->event, f, &s->other_key,
			   (f->seen | f->peer_seen) & SEEN_RST ? CLOSE_RST : CLOSE_FIN);
}

/* tell_news tells what else happened. */
__noinline int tell_news(struct __sk_buff *skb, __u32 hook)
{
	struct scratch *s = room();

	if (!s)
		return 0;
	if (s->packet.news & NEWS_FRAGMENT)
		drop(skb, hook, DROP_FRAGMENT);
	if (!listened())
		return 0;
	if (s->packet.news & NEWS_OPENED)
		tell_open(skb, s, hook);
	if (s->packet.news & NEWS_CLOSED)
		tell_closed(s);
	return 0;
}

/* finish maps what the stages decided to a TC code. What ebnet does not decide goes
 * to the next program on the hook (TCX_NEXT, which is TC_ACT_UNSPEC for clsact too).
 */
static __always_inline int finish(struct __sk_buff *skb, struct scratch *s, int ret, __u32 hook)
{
	if (s->packet.news)
		tell_news(skb, hook);
	if (ret == REDIRECTED)
		return TC_ACT_REDIRECT;
	if (ret >= 0)
		return TC_ACT_UNSPEC;
	drop(skb, hook, -ret);
	return TC_ACT_SHOT;
}

/* finish_plain does so for what fast.h decided, of which nothing is told but that it was dropped. */
static __always_inline int finish_plain(struct __sk_buff *skb, int ret, __u32 hook)
{
	if (ret == REDIRECTED)
		return TC_ACT_REDIRECT;
	drop_plain(skb, hook, -ret);
	return TC_ACT_SHOT;
}
