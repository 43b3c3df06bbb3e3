/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Sockets of the host's own processes: they reach published ports at 127.0.0.1 and at any
 * address of the host by being connected to the endpoint from the start, so that no packet
 * is translated; and they cannot bind what is published.
 *
 * Programs of this kind have no FIB to ask which addresses are local: map locals tells.
 */
#pragma once
#include <bpf/bpf_core_read.h>
#include "config.h"
#include "flow.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"

#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define EADDRINUSE 98

#define REFUSED 0 /* what programs on sockets return */
#define ALLOWED 1

/* An address and port in the hands of a socket call. */
struct target {
	struct addr addr;
	__be16 port;
	__u8 proto; /* 0: a socket that has no ports */
	__u8 pad;
};

static __always_inline struct target target_from(const struct bpf_sock_addr *ctx)
{
	struct target to = { .port = ctx->user_port };

	if ((ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP) ||
	    (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP))
		to.proto = ctx->protocol;
	return to;
}

static __always_inline struct target target4(const struct bpf_sock_addr *ctx)
{
	struct target to = target_from(ctx);

	addr_from_v4(&to.addr, ctx->user_ip4);
	return to;
}

static __always_inline struct target target6(const struct bpf_sock_addr *ctx)
{
	struct target to = target_from(ctx);

	to.addr.w[0] = ctx->user_ip6[0];
	to.addr.w[1] = ctx->user_ip6[1];
	to.addr.w[2] = ctx->user_ip6[2];
	to.addr.w[3] = ctx->user_ip6[3];
	if (to.addr.w[0] || to.addr.w[1] || to.addr.w[2] != V4_MAPPED)
		to.proto = 0;
	return to;
}

/* host_local: does a process of the host mean the host by this address? */
static __always_inline int host_local(const struct addr *addr)
{
	enum local_kind *kind;

	if (is_loopback(addr->w[3]))
		return 1;
	kind = bpf_map_lookup_elem(&locals, addr);
	return kind && *kind == LOCAL_ADDRESS;
}

/* service_at finds the port that is published at an address of the host. Null: none. */
static __always_inline struct service *service_at(const struct target *to)
{
	struct service_key key = { .addr = to->addr, .port = to->port, .proto = to->proto };
	struct service *svc;

	if (!to->proto || !port_published(to->proto, to->port))
		return 0;
	svc = bpf_map_lookup_elem(&services, &key);
	if (svc || !host_local(&key.addr))
		return svc;
	key.addr.w[3] = 0;
	return bpf_map_lookup_elem(&services, &key);
}

/* toward_endpoint turns a published port into the endpoint's and remembers what the process
 * called it. from is the socket's own address: one bound to a loopback address cannot
 * reach anything else. Returns whether to has changed.
 */
static __always_inline int toward_endpoint(struct bpf_sock_addr *ctx, struct target *to,
					   __be32 from)
{
	struct peer_key key = {};
	struct peer peer = {};
	struct service *svc;

	if (bpf_get_netns_cookie(ctx) != netns_cookie || is_loopback(from))
		return 0;
	if (!to->addr.w[3]) /* 0.0.0.0 means 127.0.0.1 */
		to->addr.w[3] = bpf_htonl(0x7f000001);
	svc = service_at(to);
	if (!svc)
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	key.addr = svc->addr;
	key.port = svc->port;
	peer.addr = to->addr;
	peer.port = to->port;
	peer.slot = svc->slot;
	if (bpf_map_update_elem(&peers, &key, &peer, BPF_ANY))
		return 0;
	to->addr = svc->addr;
	to->port = svc->port;
	return 1;
}

/* as_called turns an endpoint's address and port into what the process called it. */
static __always_inline int as_called(struct bpf_sock_addr *ctx, struct target *at)
{
	struct peer_key key = { .addr = at->addr, .port = at->port };
	struct peer *peer;

	if (!at->proto || bpf_get_netns_cookie(ctx) != netns_cookie)
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	peer = bpf_map_lookup_elem(&peers, &key);
	if (!peer)
		return 0;
	at->addr = peer->addr;
	at->port = peer->port;
	return 1;
}

static __always_inline void put_target4(struct bpf_sock_addr *ctx, const struct target *to)
{
	ctx->user_ip4 = to->addr.w[3];
	ctx->user_port = to->port;
}

/* put_target6: only the last word of a mapped address differs. */
static __always_inline void put_target6(struct bpf_sock_addr *ctx, const struct target *to)
{
	ctx->user_ip6[3] = to->addr.w[3];
	ctx->user_port = to->port;
}

/* may_bind: is the port free for a process of the host? port is in the machine's byte
 * order; the address ::ffff:0.0.0.0 stands for any.
 */
static __always_inline int may_bind(struct bpf_sock *ctx, const struct addr *addr)
{
	struct target at = { .addr = *addr, .port = bpf_htons(ctx->src_port) };
	struct service_key key;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return ALLOWED;
	at.proto = ctx->protocol;
	if (bpf_get_netns_cookie(ctx) != netns_cookie || !port_published(at.proto, at.port))
		return ALLOWED;
	key = (struct service_key){ .addr = at.addr, .port = at.port, .proto = at.proto };
	if (addr->w[3] && !bpf_map_lookup_elem(&services, &key)) {
		key.addr.w[3] = 0;
		if (!bpf_map_lookup_elem(&services, &key))
			return ALLOWED; /* it is published on another address */
	}
	bpf_set_retval(-EADDRINUSE);
	return REFUSED;
}

/* What the kernel knows of a socket and struct bpf_sock does not tell. */
struct sock_common {
	unsigned char skc_ipv6only : 1;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));

/* ipv6_only: a socket of IPv6 that takes no IPv4 (IPV6_V6ONLY). */
static __always_inline int ipv6_only(struct bpf_sock *ctx)
{
	struct sock *sk = (struct sock *)ctx; /* which it is, behind the verifier's view of it */

	return BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only);
}
