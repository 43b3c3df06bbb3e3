/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* How a program begins and ends: the one place where verdicts become TC codes and drops
 * are counted.
 */
#pragma once
#include "maps.h"
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

static __always_inline void count_dropped(__u32 ifindex, __u32 len, int reason)
{
	struct drop_key key = { .ifindex = ifindex, .reason = reason };
	struct drop_count *count = bpf_map_lookup_elem(&drops, &key), first = {};

	if (!count) {
		bpf_map_update_elem(&drops, &key, &first, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&drops, &key);
		if (!count)
			return;
	}
	count->packets++; /* per CPU, softirqs off: no one else writes it */
	count->bytes += len;
}

static __always_inline void count_drop(struct packet *pkt, int reason)
{
	count_dropped(pkt->ifindex, pkt->len, reason);
}

/* finish maps what the stages decided to a TC code. What ebnet does not decide goes
 * to the next program on the hook (TCX_NEXT, which is TC_ACT_UNSPEC for clsact too).
 */
static __always_inline int finish(struct __sk_buff *skb, int ret)
{
	if (ret == REDIRECTED)
		return TC_ACT_REDIRECT;
	if (ret >= 0)
		return TC_ACT_UNSPEC;
	count_dropped(skb->ifindex, skb->len, -ret);
	return TC_ACT_SHOT;
}
