/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Telling those who listen (`ebnet monitor`) of dropped packets and of conversations that begin
 * and end. Each has a ring buffer of its own and is told so many events of each kind a second and
 * CPU; what is beyond is counted. A listener that has died stops moving the end of its
 * time, and the first event after it takes it off the list.
 *
 * Whoever calls asks listened() first: it is all that this costs while nobody listens.
 */
#pragma once
#include "config.h"
#include "flow.h"
#include "maps.h"
#include "packet.h"

/* listened: does anybody? */
static __always_inline int listened(void)
{
	__u32 zero = 0;
	struct listening *all = bpf_map_lookup_elem(&listening, &zero);

	return all && all->mask;
}

/* concerns: is it a kind of event, and about an endpoint, that was asked for? */
static __always_inline int concerns(const struct listener *l, const struct event *e)
{
	return l->kinds >> (e->kind & (EVENT_KINDS - 1)) & 1 &&
	       (!l->ifindex || l->ifindex == e->from || l->ifindex == e->to);
}

/* may_tell takes a credit. They grow with time, to those of a second at most. */
static __always_inline int may_tell(struct told *t, __u32 rate, __u32 now)
{
	__u64 credits = t->credits + (__u64)(now - t->stamp) * rate, most = (__u64)rate * hz;

	if (credits > most)
		credits = most;
	t->stamp = now;
	t->credits = credits < hz ? credits : credits - hz;
	return credits >= hz;
}

/* tell_one tells the i-th listener. Nobody is woken up: listeners look by themselves, so that a
 * flood of events costs no more than writing them.
 */
static __always_inline void tell_one(__u32 i, const struct listener *l, struct event *e, __u32 now)
{
	__u32 place = i * EVENT_KINDS + (e->kind & (EVENT_KINDS - 1));
	struct told *t = bpf_map_lookup_elem(&told, &place);
	void *ring;

	if (!t)
		return;
	if (!may_tell(t, l->rate, now)) {
		t->kept++;
		return;
	}
	ring = bpf_map_lookup_elem(&rings, &i);
	if (!ring)
		return;
	if (!e->time)
		e->time = bpf_ktime_get_ns();
	if (bpf_ringbuf_output(ring, e, sizeof(*e), BPF_RB_NO_WAKEUP))
		t->lost++;
	else
		t->events++;
}

/* What a step of the round through the listeners is given. */
struct telling {
	struct event *event;
	__u32 now; /* low half of jiffies */
};

static long tell_step(__u32 i, struct telling *telling)
{
	__u32 zero = 0;
	struct listening *all = bpf_map_lookup_elem(&listening, &zero);
	struct listener *l;

	if (!all || i >= LISTENERS)
		return 1;
	l = &all->by[i];
	if (!(all->mask >> i & 1))
		return 0;
	if ((__s32)(l->until - telling->now) <= 0)
		__sync_fetch_and_and(&all->mask, ~(1U << i));
	else if (concerns(l, telling->event))
		tell_one(i, l, telling->event, telling->now);
	return 0;
}

/* tell tells everybody whom it concerns. */
__noinline int tell(struct event *e)
{
	struct telling telling = { .event = e, .now = bpf_jiffies64() + clock_offset };

	if (!e)
		return 0;
	bpf_loop(LISTENERS, tell_step, &telling, 0);
	return 0;
}

/* tell_flow tells of the conversation that f, under key, is one direction of. peer is the other
 * one, null if it is gone.
 */
static __always_inline void tell_flow(struct event *e, const struct tuple *key,
				      const struct flow *f, const struct flow *peer)
{
	const struct flow *orig = f->half == HALF_ORIG ? f : peer;
	const struct flow *reply = f->half == HALF_ORIG ? peer : f;

	if (f->half == HALF_ORIG) {
		e->tuple = *key;
		e->xlat = f->xlat;
	} else {
		tuple_reverse(&e->tuple, &f->xlat);
		tuple_reverse(&e->xlat, key);
	}
	if (orig) {
		e->packets[HALF_ORIG] = orig->packets;
		e->bytes[HALF_ORIG] = orig->bytes;
		e->from = orig->iif;
	}
	if (reply) {
		e->packets[HALF_REPLY] = reply->packets;
		e->bytes[HALF_REPLY] = reply->bytes;
		e->to = reply->iif;
	}
	e->slot = f->slot;
	e->age = bpf_jiffies64() + clock_offset - f->created;
	e->flow = f->kind;
	tell(e);
}

/* tell_close tells that the conversation of f, under key, ends. e is room for the event: a
 * packet's program has it in its scratch, others on their stack.
 */
static __noinline int tell_close(struct event *e, const struct flow *f, const struct tuple *key,
				 __u32 why)
{
	struct tuple peer_key;

	if (!e || !f || !key)
		return 0;
	__builtin_memset(e, 0, sizeof(*e));
	e->kind = EVENT_CLOSE;
	e->why = why;
	tell_flow(e, key, f, flow_peer(f, &peer_key));
	return 0;
}

/* closed_why says why f is over, 0 if that was told when it was closed. */
static __always_inline __u32 closed_why(const struct flow *f)
{
	if (flow_closed(f, f->xlat.proto))
		return CLOSE_NONE;
	return generation(f->slot) != f->gen ? CLOSE_REMOVED : CLOSE_TIMEOUT;
}
