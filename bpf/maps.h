/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Every map, with who writes and who reads it. "Go" is package loader. */
#pragma once
#include <linux/bpf.h>
#include <linux/ip.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "packet.h"

/* Confirmed conversations, which new ones cannot push out.
 * Key: tuple before translation. Written and read by the programs, listed by Go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512 * 1024); /* set by Go: two a conversation */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tuple);
	__type(value, struct flow);
} flows SEC(".maps");

/* What reclaims confirmed conversations that are over, see sweep.h. Started by Go with
 * program start_sweep, written by the programs.
 */
struct sweeper {
	struct bpf_timer timer;
	__u64 head; /* of sweep_queue: the next to look at ... */
	__u64 tail; /* ... and the next free place */
	__u64 settled; /* where tail was a round ago: what is before it has been written */
	__u64 rounds;
	__u64 took; /* nanoseconds, the last round */
	__u64 longest; /* of all */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweeper);
} sweepers SEC(".maps");

/* Confirmed conversations in the order in which they are looked at. Key: a number that grows.
 * Written and read by the programs.
 */
struct queued {
	struct tuple orig_key;
	__u64 created; /* of the flow: another one may have the same tuple by now */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512 * 1024); /* set by Go: as flows */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct queued);
} sweep_queue SEC(".maps");

/* Conversations that both sides have not confirmed yet: they can only evict one
 * another. Key, writers and readers as of flows.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64 * 1024);
	__type(key, struct tuple);
	__type(value, struct flow);
} flows_new SEC(".maps");

/* Generation of each endpoint and publication. Index: slot. Raised by Go when the
 * owner of the slot goes, which voids all its flows at once.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} gens SEC(".maps");

/* Containers by address. Written by Go, read by all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16 * 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* Containers by host-side interface index. Written by Go, read by from_container. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16 * 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* Containers by a hash of their IPv4 addresses, see struct near. Written by Go, read by
 * from_container.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEARS);
	__type(key, __u32);
	__type(value, struct near);
} nears SEC(".maps");

/* Networks by id. Written by Go, read by all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

/* Network id by subnet. Written by Go, read where no endpoint and no flow matched. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 2 * MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, __u32);
} subnets SEC(".maps");

/* Where inner addresses may be, for a look that costs less than that into subnets: bit p % 64 of
 * word p / 64 is set if a network has IPv4 addresses that start with the 16 bits p. Written by Go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} inner SEC(".maps");

/* Endpoints that have used published ports from inside: bit s % 64 of word s / 64 for slot s.
 * Written and read by the programs. Never cleared, since it only saves a lookup. Slot 0 is nobody's: its
 * bit says that all programs so far have kept this (Go).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS / 64);
	__type(key, __u32);
	__type(value, __u64);
} callers SEC(".maps");

/* Ways out that were looked up less than a second ago, for conversations with the same
 * destination: a look here is cheaper than at the FIB. Index: a hash of the key. See
 * way_shared(). Written and read by the programs, by each CPU for itself.
 */
struct way_key {
	struct addr source; /* as it leaves */
	struct addr dst;
	__u32 ifindex; /* where the packet came from */
	__be16 port; /* the server's, which rules may route by */
	__u8 proto;
	__u8 class; /* DSCP in the high 6 bits, enum flow_half below */
};
_Static_assert(sizeof(struct way_key) == 40, "way_key");

struct way {
	struct way_key key;
	__u32 checked; /* low half of jiffies */
	__u32 oif;
	__u8 dmac[6];
	__u8 smac[6];
	__u8 pad[4];
};
_Static_assert(sizeof(struct way) == 64, "way");

#define WAYS_BITS 12
#define WAYS (1 << WAYS_BITS)
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WAYS);
	__type(key, __u32);
	__type(value, struct way);
} ways SEC(".maps");

/* Published ports. Written by Go, read by from_uplink and from_container for
 * first packets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256 * 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

/* Who may use a published port that is restricted, by slot and source prefix. The value
 * says nothing. Written by Go, read for first packets.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 256 * 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u32);
} sources SEC(".maps");

/* Ports by what may use them, see struct port_word. Written by Go. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * 1024);
	__type(key, __u32);
	__type(value, struct port_word);
} ports SEC(".maps");

/* Devices that lead outside, by interface index. Written by Go. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct uplink);
} uplinks SEC(".maps");

/* Uplinks by the low bits of their interface index, see struct near. Written by Go, read by all
 * programs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_UPLINKS);
	__type(key, __u32);
	__type(value, struct near_uplink);
} near_uplinks SEC(".maps");

/* Addresses of the host, as enum local_kind, for programs that have no FIB to ask.
 * Written by Go, and by the programs when they see that one is new or gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16 * 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, enum local_kind);
} locals SEC(".maps");

/* Datagrams under way in fragments. Written and read by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16 * 1024);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Sockets of the host that talk to published ports, so that they are told the address
 * they used. Written and read by the socket programs, read by Go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64 * 1024);
	__type(key, struct peer_key);
	__type(value, struct peer);
} peers SEC(".maps");

/* Confirmed conversations by what they live and die with. Index: slot. Counted by the
 * programs, set to zero by Go with a new generation.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, struct share);
} shares SEC(".maps");

/* Peers (address, with our own in the first word, port, protocol) toward which no source port
 * was free, and the low half of jiffies then: a search through all ports is not repeated for each packet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4 * 1024);
	__type(key, struct service_key);
	__type(value, __u32);
} exhausted SEC(".maps");

/* Dropped packets. Written by the programs, summed and removed with their endpoint by Go. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 128 * 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct drop_key);
	__type(value, struct drop_count);
} drop_counts SEC(".maps");

/* Who listens to events. Written by Go; programs clear what is over. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct listening);
} listening SEC(".maps");

/* Where each listener is told: a ring of its own, which Go puts here for as long as it listens.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, LISTENERS);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_RINGBUF);
			__uint(max_entries, 4096); /* any power of 2, a page at least */
		});
} rings SEC(".maps");

/* What listeners are told. Index: listener * EVENT_KINDS + kind. Written by the programs, summed
 * by Go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LISTENERS *EVENT_KINDS);
	__type(key, __u32);
	__type(value, struct told);
} told SEC(".maps");

/* Room for what is too big for the stack of 512 bytes. Programs run with softirqs
 * off, so one CPU's entry has one user at a time.
 */
struct quote {
	struct iphdr ip; /* of the packet that an ICMP error quotes */
	__u8 l4[8]; /* as much of its transport header as there always is */
	__u32 l4_off;
};

/* What is common to both directions' entries. */
struct opening {
	__u32 slot;
	__u32 gen;
	__u32 orig_iif;
	__u32 reply_iif;
	__u8 kind;
};

/* What a packet needs to know of the flow it belongs to, copied out of the table. */
struct hit {
	struct tuple xlat;
	__u32 oif;
	__u32 way_checked;
	__u8 dmac[6];
	__u8 smac[6];
	enum flow_half half;
	enum flow_kind kind;
	__u8 pad[2];
	__u32 slot;
	__u32 gen;
};

/* The same for what fast.h handles, where one side is translated. */
struct plain {
	__be32 addr; /* after translation, of that side */
	__be16 port;
	enum flow_half half;
	__u8 pad;
	__u32 oif;
	__u32 way_checked;
	__u32 slot;
	__u32 gen;
	__u8 dmac[6];
	__u8 pad2[2];
	__u8 smac[6];
	__u8 pad3[2];
};

/* A search for a source port. */
struct port_search {
	__u64 now;
	__u32 start;
	__u32 result; /* enum reserved */
	__u32 choice; /* enum port_choice */
	__u32 pad;
};

struct scratch {
	struct packet packet;
	struct hit hit;
	struct tuple key; /* of the packet, where it is not parsed into packet */
	struct plain plain;
	__u8 missed; /* flows had nothing under key */
	__u8 pad[7];
	struct tuple orig_key;
	struct tuple reply_key;
	struct tuple other_key;
	struct flow orig;
	struct flow reply;
	struct bpf_fib_lookup fib;
	struct quote quote;
	struct opening opening;
	struct fragment_key fragment_key;
	struct fragment fragment;
	struct port_search search;
	struct service_key service_key;
	struct source_key source_key;
	struct subnet_key subnet_key;
	struct addr local_key;
	struct way_key way_key;
	__u64 place; /* in sweep_queue */
	struct queued queued;
	struct event event;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct scratch)); /* no type: it is nobody else's business */
} scratch SEC(".maps");

/* What is pinned. Written and read by Go alone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct about);
} about SEC(".maps");
