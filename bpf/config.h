/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What is fixed when the programs are loaded. Dead branches are removed by the verifier. */
#pragma once
#include "abi.h"

/* Redirect past the bridge and the host's stack. */
const volatile __u32 fast_path = 1;

/* Keys the hash that spreads source ports. */
const volatile __u64 hash_secret = 0;

/* Timer interrupts a second (CONFIG_HZ) and the nanoseconds between two of them. */
const volatile __u32 hz = 250;
const volatile __u32 tick_ns = 4000000;

/* Which flags of bpf_fib_lookup() the kernel knows; others are left out. */
const volatile __u32 fib_flags = 0;

/* The host's network namespace: the socket programs leave all others alone. */
const volatile __u64 netns_cookie = 0;

/* Confirmed conversations that one endpoint or published port may have. */
const volatile __u32 flows_share = 128 * 1024;

/* Life of an idle conversation in seconds, set by Go (type Timeouts of loader has the
 * defaults and says where they come from).
 */
const volatile __u32 timeout_tcp_syn = 0;
const volatile __u32 timeout_tcp_established = 0;
const volatile __u32 timeout_tcp_half_closed = 0;
const volatile __u32 timeout_tcp_closed = 0;
const volatile __u32 timeout_udp_unreplied = 0;
const volatile __u32 timeout_udp_replied = 0;
const volatile __u32 timeout_icmp = 0;

/* Added to the clock, in jiffies. Only tests set it, to let hours pass. */
volatile __u64 clock_offset = 0;
