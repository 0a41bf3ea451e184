/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout that sidestep_egress.c, the daemon and the pod proxy share.
 *
 * daemon/sidestep/steering/egress_layout.py mirrors keys, settings and verdicts, daemon/sidestep/model/egress_table.py the
 * entries, which the pod proxy reads. The assertions check sizes at compile time.
 */
#ifndef SIDESTEP_EGRESS_LAYOUT_H
#define SIDESTEP_EGRESS_LAYOUT_H

#define MAP(index) ((void *)bpf_pseudo_fd(1, index))

/* Addresses are IPv6, IPv4 mapped, in network byte order. */

/* The one value of the settings. */
struct egress_settings {
	u32 generation; /* which prefixes and ports are in force */
	u32 flags;      /* EGRESS_* below */
	u32 network;    /* IPv4 network of the rewritten destinations, network byte order */
	u32 mask;       /* entries - 1 */
	u32 own4[4];    /* the pod's IPv4 address, mapped; zero: none */
	u32 own6[4];    /* the pod's IPv6 address; zero: none */
	u64 netns;      /* cookie of the pod's network namespace; zero: not known (Linux before 5.14) */
};

_Static_assert(sizeof(struct egress_settings) == 56, "steering/egress_layout.py packs the settings into 56 bytes");

#define EGRESS_FAIL 1       /* refuse what is selected and cannot be steered */
#define EGRESS_ALL_PORTS 2  /* every port is selected */
#define EGRESS_BLOCK_QUIC 4 /* refuse UDP to port 443 of selected addresses */

#define EGRESS_NETMASK 0xffff0000 /* of `network`, host byte order */

/* Key of the trie of prefixes; `length` counts the 32 bits of the generation. The value is a u32: 1 steered, 0 passed. */
struct egress_prefix {
	u32 length;
	u32 generation;
	u32 address[4];
};

_Static_assert(sizeof(struct egress_prefix) == 24, "steering/egress_layout.py packs this key into 24 bytes");

/* Key of the hash of selected ports. */
struct egress_port {
	u32 generation;
	u32 port; /* host byte order */
};

_Static_assert(sizeof(struct egress_port) == 8, "steering/egress_layout.py packs this key into 8 bytes");

/* Key of the hash of destinations that do not answer. The value is a u32: until when, as `since` of an entry. */
struct egress_destination {
	u32 address[4];
	u32 port; /* host byte order */
};

_Static_assert(sizeof(struct egress_destination) == 20, "steering/egress_layout.py packs this key into 20 bytes");

/* States of an entry; sidestep_egress.c explains them. */
#define ENTRY_FREE 0
#define ENTRY_IN_USE 1
#define ENTRY_RELEASED 2

/* The original destination of one connection. */
struct egress_entry {
	u64 cookie;      /* of the app's socket */
	u32 address[4];  /* the original destination */
	u32 since;       /* CLOCK_MONOTONIC in units of 2^30 ns: when the state began */
	u32 sequence;    /* goes up with every claim of the entry */
	u32 taken;       /* written by the pod proxy: the sequence that it has read */
	u32 busy;        /* programs that try to claim the entry at this moment */
	u16 port;        /* the original port, host byte order */
	u16 source_port; /* the local port, if the app chose one, host byte order */
	u8 state;
	u8 family;       /* AF_INET: sent to the network, AF_INET6: to ::1 */
	u16 padding;
};

_Static_assert(sizeof(struct egress_entry) == 48, "model/egress_table.py reads entries of 48 bytes");

/* What became of a connection, or of a lookup; the values index one per-CPU array. */
enum egress_verdict {
	EGRESS_STEERED,     /* sent to the proxy */
	EGRESS_UNSELECTED,  /* address or port are not among those to steer */
	EGRESS_LOOPBACK,    /* to a loopback or unspecified address, or steered by another daemon's program already */
	EGRESS_FULL,        /* no entry was found */
	EGRESS_UNSERVED,    /* there is no listener */
	EGRESS_UNREACHABLE, /* from a device, namespace, address or family from which the listener cannot be reached */
	EGRESS_FAILED,      /* the kernel refused the pod's address as source */
	EGRESS_CLOSED,      /* refused; the reason is counted besides */
	EGRESS_QUIC,        /* UDP to port 443, refused */
	EGRESS_LOST,        /* a lookup for an entry whose listener could not be assigned */
	EGRESS_DOWN,        /* the proxy could not reach the destination a moment ago */
	EGRESS_COUNT
};

_Static_assert(EGRESS_COUNT == 11, "steering/egress_layout.py has a counter for each of 11 verdicts");

#endif
