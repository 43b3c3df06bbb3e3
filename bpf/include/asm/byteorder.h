/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* ebnet is built for little-endian machines only. */
#pragma once
#define __LITTLE_ENDIAN_BITFIELD
