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

/* Life of an idle conversation, in seconds. */
const volatile __u32 timeout_tcp_syn = 60;
const volatile __u32 timeout_tcp_established = 7440; /* RFC 5382 REQ-5: at least 2 h 4 min */
const volatile __u32 timeout_tcp_half_closed = 120;
const volatile __u32 timeout_tcp_closed = 30;
const volatile __u32 timeout_udp_unreplied = 30;
const volatile __u32 timeout_udp_replied = 180; /* RFC 4787 REQ-5: at least 2 min */
const volatile __u32 timeout_icmp = 60; /* RFC 5508 REQ-1: at least 60 s */

/* Added to the clock, in jiffies. Only tests set it, to let hours pass. */
volatile __u64 clock_offset = 0;
