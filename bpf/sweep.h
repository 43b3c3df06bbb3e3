/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Giving back the memory of confirmed conversations that are over. Whether one is over is
 * for its time stamps to say, at any time; this only reclaims.
 *
 * One timer looks at a part of them every quarter of a second, in the order of
 * sweep_queue, so that it comes round in a minute and never takes long. (A timer in
 * each entry would look at that entry alone; but Linux 6.18 has memory for some hundred of
 * them, since bpf_timer_init() may not wait for a page there. And bpf_for_each_map_elem()
 * always starts at the first element.)
 */
#pragma once
#include "flow.h"
#include "maps.h"
#include "monitor.h"

#define CLOCK_MONOTONIC 1
#define EBUSY 16

#define SWEEP_EVERY 250000000ULL /* nanoseconds from one round to the next */
#define SWEEP_IDLE 2000000000ULL /* the same while the queue is empty */
#define SWEEP_ROUNDS 240 /* for the whole queue */
#define SWEEP_MIN 64 /* conversations a round ... */
#define SWEEP_MAX 4096 /* ... and at most */

/* sweep_over: is it time for the entry to go? */
static __always_inline int sweep_over(struct flow *f, __u64 now)
{
	if (generation(f->slot) != f->gen && !is_tombstone(f))
		return 1;
	return !flow_alive(f, now);
}

/* sweep_away removes what is over. */
static __always_inline void sweep_away(struct flow *f, struct tuple *key)
{
	__u32 why = listened() ? closed_why(f) : CLOSE_NONE;
	struct event e;

	if (why != CLOSE_NONE)
		tell_close(&e, f, key, why);
	flow_delete_pair(f, key);
}

/* One round. */
struct sweep {
	__u64 until; /* place in the queue */
	__u64 now; /* jiffies */
};

/* sweep_step looks at the head of the queue: the conversation goes, or stands in line again. */
static long sweep_step(__u32 i, struct sweep *sweep)
{
	__u32 zero = 0;
	struct sweeper *sw = bpf_map_lookup_elem(&sweepers, &zero);
	struct queued *found, queued;
	struct flow *f;
	__u64 place, next;

	if (!sw || sw->head >= sweep->until)
		return 1;
	place = sw->head;
	found = bpf_map_lookup_elem(&sweep_queue, &place);
	if (found) {
		queued = *found;
		f = bpf_map_lookup_elem(&flows, &queued.orig_key);
		if (f && f->created == queued.created) {
			if (sweep_over(f, sweep->now)) {
				sweep_away(f, &queued.orig_key);
			} else {
				next = __sync_fetch_and_add(&sw->tail, 1);
				if (bpf_map_update_elem(&sweep_queue, &next, &queued, BPF_NOEXIST))
					return 1; /* no memory now: it keeps its place */
			}
		}
		bpf_map_delete_elem(&sweep_queue, &place);
	}
	sw->head = place + 1;
	return 0;
}

/* sweep_size returns how many conversations a round looks at, so that all get their turn in
 * SWEEP_ROUNDS.
 */
static __always_inline __u32 sweep_size(__u64 waiting)
{
	__u64 n = waiting / SWEEP_ROUNDS + SWEEP_MIN;

	return n < SWEEP_MAX ? n : SWEEP_MAX;
}

/* sweep_round is the timer's callback. */
static int sweep_round(void *map, __u32 *key, struct sweeper *sw)
{
	struct sweep sweep = { .now = bpf_jiffies64() + clock_offset, .until = sw->settled };
	__u64 start = bpf_ktime_get_ns(), waiting = sw->tail - sw->head;

	sw->settled = sw->tail;
	if (waiting)
		bpf_loop(sweep_size(waiting), sweep_step, &sweep, 0);
	sw->took = bpf_ktime_get_ns() - start;
	if (sw->took > sw->longest)
		sw->longest = sw->took;
	sw->rounds++;
	bpf_timer_start(&sw->timer, waiting ? SWEEP_EVERY : SWEEP_IDLE, 0);
	return 0;
}

/* sweep_start starts the timer, or makes the one that runs call this program. 0: it runs. */
static __always_inline int sweep_start(void)
{
	__u32 zero = 0;
	struct sweeper *sw = bpf_map_lookup_elem(&sweepers, &zero);
	int err;

	if (!sw)
		return -1;
	err = bpf_timer_init(&sw->timer, &sweepers, CLOCK_MONOTONIC);
	if (err && err != -EBUSY)
		return err;
	err = bpf_timer_set_callback(&sw->timer, sweep_round);
	return err ? err : bpf_timer_start(&sw->timer, SWEEP_EVERY, 0);
}
