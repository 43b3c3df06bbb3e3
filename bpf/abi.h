/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Everything that programs and Go share: keys, values and enums of the pinned maps.
 *
 * Rules: no bitfields, no unions, no anonymous structs, explicit padding that is
 * always zero, a static assertion on each size. __be types are in network byte
 * order, all others in the machine's. A change of any layout here is a change of
 * EBNET_ABI.
 */
#pragma once
#include <linux/types.h>

#define EBNET_ABI 2

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). */
struct addr {
	__be32 w[4];
};

/* What identifies a direction of a conversation, as the packet carries it.
 *
 * ICMP echo has one identifier for both directions (RFC 5508): it stands where the
 * requester's port would, and 0 where the other one would.
 */
struct tuple {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto; /* IPPROTO_TCP, IPPROTO_UDP or IPPROTO_ICMP */
	__u8 scope; /* 0; kept for traffic that never leaves the host */
	__u8 pad[2];
};
_Static_assert(sizeof(struct tuple) == 40, "tuple");

enum flow_kind {
	FLOW_SNAT = 1, /* from an endpoint to outside, source translated */
	FLOW_DNAT = 2, /* from outside to a published port, destination translated */
	FLOW_HAIRPIN = 3, /* from an endpoint to a published port */
	FLOW_DIRECT = 4, /* between a routed network and outside, not translated */
	FLOW_HOST = 5, /* of the host, or of whom it forwards for: translated if need be */
	FLOW_LOCAL = 6, /* from an endpoint to one of the host's addresses, not translated */
} __attribute__((packed));

enum flow_half {
	HALF_ORIG = 0, /* the direction of the first packet */
	HALF_REPLY = 1,
} __attribute__((packed));

/* Bits of flow.seen: what has been seen in one direction. */
enum flow_seen {
	SEEN_PACKET = 1,
	SEEN_SYN = 2,
	SEEN_FIN = 4,
	SEEN_RST = 8,
	SEEN_ACK = 16, /* a TCP ACK that is no SYN */
};

/* One direction of one conversation. Its key is the tuple before translation, so
 * that one lookup says everything an established packet needs; the key of the other
 * direction is the reverse of xlat, and the other direction's xlat the reverse of
 * this key.
 */
struct flow {
	__u64 tag; /* tuple_tag() of the key; first, see flow_read() */
	struct tuple xlat; /* the tuple after translation */
	__u64 last_seen; /* jiffies; written when it is a second old */
	__u64 created; /* jiffies */
	__u64 packets;
	__u64 bytes; /* of frames at the hook */
	__u32 slot; /* index into gens of what the flow lives and dies with */
	__u32 gen; /* the flow is void once gens[slot] differs */
	__u32 iif; /* device it must come from, 0: any */
	__u32 oif; /* way out: device ... */
	__u32 way_checked; /* low half of jiffies when the way out was looked up */
	enum flow_seen seen; /* in this direction, any of the bits */
	enum flow_seen peer_seen; /* in the other direction */
	__u8 dmac[6]; /* ... and Ethernet addresses */
	__u8 smac[6];
	enum flow_kind kind;
	enum flow_half half;
	__u8 refused; /* its owner has its share of confirmed conversations already */
	__u8 pad[5];
};
_Static_assert(sizeof(struct flow) == 128, "flow");

/* A container by its address. */
struct endpoint {
	__u32 ifindex; /* host side of its veth pair */
	__u32 network;
	__u32 slot;
	__u8 mac[6]; /* of the container's side */
	__u8 pad[2];
};
_Static_assert(sizeof(struct endpoint) == 20, "endpoint");

/* A container by the host side of its veth pair: what it may send as. */
struct device {
	struct addr addr4;
	struct addr addr6; /* all zero: none */
	__u32 network;
	__u32 slot;
	__u8 mac[6];
	__u8 published; /* it has, or has had, published ports */
	__u8 pad;
};
_Static_assert(sizeof(struct device) == 48, "device");

/* What the programs need of a container for packets between neighbours, where it is found by
 * a hash of its IPv4 address (near_at()), without a search. Of two containers that fall
 * on the same place one is here; the maps of devices and endpoints have all of them.
 */
struct near {
	__be32 addr; /* 0: nobody is here */
	__u32 ifindex;
	__u32 network;
	__u32 slot;
	__u8 mac[6];
	__u8 published; /* as in struct device */
	__u8 pad;
};
_Static_assert(sizeof(struct near) == 24, "near");

#define NEARS_BITS 12
#define NEARS (1 << NEARS_BITS)

/* An uplink by the low bits of its interface index, for the same purpose. */
struct near_uplink {
	__u32 ifindex; /* 0: none is here */
	__u32 flags; /* as in struct uplink */
};

#define NEAR_UPLINKS 64

enum network_flag {
	NET_INTERNAL = 1,
	NET_NO_ICC = 2,
	NET_NO_MASQUERADE = 4,
	NET_ROUTED = 8,
};

struct network {
	struct addr gateway4;
	struct addr gateway6;
	struct addr snat4; /* source of what leaves; all zero: what routing prefers */
	__u32 bridge; /* interface index */
	__u32 mtu;
	enum network_flag flags; /* any of the bits */
	__u8 mac[6]; /* of the bridge */
	__u8 pad[2];
};
_Static_assert(sizeof(struct network) == 68, "network");

struct subnet_key {
	__u32 prefixlen; /* 0 to 128; of IPv4 the prefix length + 96 */
	struct addr addr;
};

struct service_key {
	struct addr addr; /* ::ffff:0.0.0.0 stands for any local IPv4 address */
	__be16 port;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct service_key) == 20, "service_key");

enum service_flag {
	SERVICE_RESTRICTED = 1, /* only for what map sources lists */
} __attribute__((packed));

/* A published port. */
struct service {
	struct addr addr; /* the endpoint's */
	__be16 port;
	__u8 mac[6]; /* the endpoint's */
	__u32 slot;
	__u32 network;
	__u32 ifindex; /* host side of the endpoint's veth pair */
	enum service_flag flags; /* any of the bits */
	__u8 pad[3];
};
_Static_assert(sizeof(struct service) == 40, "service");

/* A source that may use a restricted published port. */
struct source_key {
	__u32 prefixlen; /* 32 for the slot, and that of the address as in struct subnet_key */
	__u32 slot; /* the publication's */
	struct addr addr;
};
_Static_assert(sizeof(struct source_key) == 24, "source_key");

enum uplink_flag {
	UPLINK_SIDE = 1, /* leads to others on this host: they may come in, ours not out */
} __attribute__((packed));

struct uplink {
	struct addr addr4; /* source address where the FIB does not tell it */
	struct addr addr6;
	__u32 mtu;
	enum uplink_flag flags; /* any of the bits */
	__u8 pad[3];
};
_Static_assert(sizeof(struct uplink) == 40, "uplink");

/* What is known of an address of the host. */
enum local_kind {
	LOCAL_ADDRESS = 1,
	LOCAL_BROADCAST = 2,
};

/* A datagram in fragments, as it comes to one hook. */
struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 ifindex;
	__be16 id;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

/* What its first fragment was translated to, for the others, which have no ports. */
struct fragment {
	struct tuple xlat;
	__u32 oif;
	__u32 slot; /* as in struct flow */
	__u32 gen;
	__u32 stamp; /* low half of jiffies */
	__u8 dmac[6];
	__u8 smac[6];
	enum flow_kind kind;
	enum flow_half half;
	__u8 pad[2];
};
_Static_assert(sizeof(struct fragment) == 72, "fragment");

/* Whom a socket of the host talks to by way of a published port. */
struct peer_key {
	__u64 cookie; /* the socket's */
	struct addr addr; /* the endpoint's */
	__be16 port;
	__u8 pad[6];
};
_Static_assert(sizeof(struct peer_key) == 32, "peer_key");

/* What the process called it. */
struct peer {
	struct addr addr;
	__be16 port;
	__u8 pad[2];
	__u32 slot; /* of the publication */
};
_Static_assert(sizeof(struct peer) == 24, "peer");

/* How much of the flow table the owner of a slot has. */
struct share {
	__s32 held; /* confirmed conversations */
	__u32 refused; /* confirmations, because that was too many */
};

/* 64 ports of one protocol; bit p % 64 of word p / 64. Index: p / 64 for TCP,
 * 1024 + p / 64 for UDP.
 */
struct port_word {
	__u64 source; /* may be chosen as a source port */
	__u64 published; /* is published on some address */
	__u64 tracked; /* has ever been in source: flows may still use it */
};

/* Why a packet was dropped. Each reason is silent unless it says otherwise. */
enum drop_reason {
	DROP_NONE = 0,
	DROP_MALFORMED = 1, /* truncated, or a header length below its minimum */
	DROP_UNKNOWN_DEVICE = 2, /* from a veth that belongs to no endpoint */
	DROP_SPOOFED_MAC = 3, /* not the endpoint's own Ethernet address */
	DROP_SPOOFED_ADDR = 4, /* not the endpoint's own IP address */
	DROP_SPOOFED_ARP = 5, /* ARP that speaks for another address */
	DROP_FAMILY = 6, /* neither ARP nor an IP version the network has */
	DROP_OTHER_NETWORK = 7, /* to another network's subnet */
	DROP_ICC = 8, /* neighbours are closed (--no-icc) */
	DROP_INTERNAL = 9, /* the network has no way out (--internal) */
	DROP_NOT_UPLINK = 10, /* routed to a device that ebnet does not guard */
	DROP_NO_FLOW = 11, /* late: opens no conversation and belongs to none */
	DROP_RETIRED = 12, /* of a conversation with a port that was unpublished */
	DROP_PROTOCOL = 13, /* a transport protocol that is not translated */
	DROP_FRAGMENT = 14, /* a fragment whose first one has not been seen */
	DROP_NO_PORT = 15, /* no source port is free toward that peer */
	DROP_TABLE_FULL = 16, /* no room for the flow */
	DROP_NO_SOURCE = 17, /* the uplink has no source address */
	DROP_DIRECT = 18, /* from outside to a container's address */
	DROP_FORWARDED = 19, /* routed into a network by the host for others */
	DROP_TTL = 20, /* hop limit reached */
	DROP_REWRITE = 21, /* the kernel refused to change the packet */
	DROP_REDIRECT = 22, /* the kernel refused the way out */
	DROP_ADDRESS_GONE = 23, /* the host has lost the address it was translated to */
	DROP_SOURCE = 24, /* not among those who may use the published port (--from) */
	DROP_DHCP_SERVER = 25, /* an endpoint that plays the DHCP server */
	DROP_LOOPBACK = 26, /* to 127.0.0.0/8, which stays within a host (RFC 1122 3.2.1.3) */
	DROP_REASONS = 27,
} __attribute__((packed));

/* The programs that see packets, by their names. */
enum hook {
	AT_FROM_CONTAINER = 0,
	AT_FROM_UPLINK = 1,
	AT_TO_UPLINK = 2,
	AT_FROM_BRIDGE = 3,
	AT_TO_BRIDGE = 4,
} __attribute__((packed));

/* As the container sees it. */
enum direction {
	SENT = 0,
	RECEIVED = 1,
} __attribute__((packed));

/* Dropped packets are counted under the device of the hook, and the endpoint as far as it is
 * known. What one container sends to another is counted as sent there, and as received
 * under no device.
 */
struct drop_key {
	__u32 ifindex; /* device of the hook; 0: sent by another container, which counts it too */
	__u32 slot; /* the endpoint's, 0: none is known */
	enum drop_reason reason;
	enum direction direction;
	__u8 pad[2];
};
_Static_assert(sizeof(struct drop_key) == 12, "drop_key");

struct drop_count {
	__u64 packets;
	__u64 bytes;
	__u32 gen; /* of the slot; with another one the count is a former owner's */
	__u8 pad[4];
};
_Static_assert(sizeof(struct drop_count) == 24, "drop_count");

/* Why a conversation ended. */
enum close_reason {
	CLOSE_NONE = 0,
	CLOSE_FIN = 1, /* both sides are done */
	CLOSE_RST = 2,
	CLOSE_TIMEOUT = 3, /* silent for too long */
	CLOSE_REMOVED = 4, /* its endpoint or published port is gone */
	CLOSE_FLUSHED = 5, /* by Go */
	CLOSE_ADDRESS = 6, /* the host has lost the address that it used */
} __attribute__((packed));

/* What happens is told to listeners under a kind: the enum drop_reason of a dropped packet, or
 * one of these.
 */
#define EVENT_OPEN 30
#define EVENT_CLOSE 31
#define EVENT_KINDS 32
_Static_assert(DROP_REASONS <= EVENT_OPEN, "a bit for each kind");

struct event {
	__u64 time; /* nanoseconds, CLOCK_MONOTONIC */
	struct tuple
		tuple; /* a packet's, as far as it was read; a conversation's as it is opened */
	struct tuple xlat; /* the conversation's after translation */
	__u64 packets[2]; /* of the conversation, by enum flow_half */
	__u64 bytes[2];
	__u32 ifindex; /* device of the hook, 0: at no hook */
	__u32 from; /* host side of the veth of the endpoint that sends or opens, 0: none */
	__u32 to; /* of the endpoint that it is for */
	__u32 slot; /* the conversation's */
	__u32 len; /* of the frame */
	__u32 age; /* jiffies since the conversation was opened */
	__be16 eth_proto;
	__u8 smac[6];
	__u8 dmac[6];
	__u8 kind;
	enum hook hook;
	enum direction direction;
	enum close_reason why;
	enum flow_kind flow;
	__u8 translated; /* tuple is what the packet was translated to */
	__u8 pad[4];
};
_Static_assert(sizeof(struct event) == 168, "event");

/* Somebody who listens. */
struct listener {
	__u32 until; /* low half of jiffies: who listens goes on moving it */
	__u32 kinds; /* bits: which kinds of events */
	__u32 ifindex; /* only what this endpoint sends or gets (its veth), 0: all */
	__u32 rate; /* events of each kind a second and CPU, at most */
};

#define LISTENERS 8
struct listening {
	__u32 mask; /* bits: who listens. Programs clear those whose time is over */
	__u8 pad[12];
	struct listener by[LISTENERS];
};
_Static_assert(sizeof(struct listening) == 144, "listening");

/* What a listener is told of one kind of event, on one CPU. */
struct told {
	__u64 credits; /* events that may be told now, times CONFIG_HZ */
	__u64 events; /* that were told */
	__u64 kept; /* not told, to keep to the rate */
	__u64 lost; /* not told for want of room */
	__u32 stamp; /* low half of jiffies when credits were last given */
	__u8 pad[4];
};
_Static_assert(sizeof(struct told) == 40, "told");

/* What is pinned here, for the next command to compare with. */
struct about {
	__u8 fingerprint[32]; /* SHA-256 of the object and its configuration */
	__u64 netns; /* inode of the host's network namespace */
	__u64 secret;
	__u32 max_flows; /* conversations */
	__u32 fast_path;
	__u32 no_tcx;
	__u32 timeouts[7]; /* seconds, in the order of bpf/config.h */
};
_Static_assert(sizeof(struct about) == 88, "about");

#define MAX_NETWORKS 1024
#define MAX_SLOTS (128 * 1024)
