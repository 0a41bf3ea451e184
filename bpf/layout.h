/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs and the daemon share: keys and values of their maps, and the order of the counters.
 *
 * daemon/sidestep/steering/layout.py mirrors this file, and says of what type and size each map is. Sizes of keys, values
 * and arrays are checked here when the program is compiled; the values of the enum are the indices of one per-CPU array.
 */
#ifndef SIDESTEP_LAYOUT_H
#define SIDESTEP_LAYOUT_H

/*
 * A reference to the map that stands at `index` in layout.py's list. The loader puts a descriptor in its place. bcc's own
 * tables would be created in order to compile, which takes capabilities that the compiler must not have.
 */
#define MAP(index) ((void *)bpf_pseudo_fd(1, index))

/* A steered port. One entry per family, although one dual-stack listener usually serves both. */
struct steered_key {
	u16 port;     /* local port, host byte order */
	u8 transport; /* IPPROTO_TCP or IPPROTO_UDP */
	u8 family;    /* AF_INET or AF_INET6 */
};

_Static_assert(sizeof(struct steered_key) == 4, "steering/layout.py packs this key into 4 bytes");

/* Why a lookup ended as it did. */
enum verdict {
	VERDICT_STEERED,   /* handed to our listener */
	VERDICT_UNSTEERED, /* the port is not steered: the usual lookup goes on */
	VERDICT_LOOPBACK,  /* the remote end is a loopback address: somebody in the pod, maybe the proxy itself */
	VERDICT_OWN,       /* the remote end is the local address: a dial from inside the pod to the pod's own address */
	VERDICT_FAILED,    /* the kernel refused the assignment: the usual lookup goes on */
	VERDICT_COUNT
};

_Static_assert(VERDICT_COUNT == 5, "steering/layout.py has a counter for each of 5 verdicts");

/* A connection of the proxy as the app sees it. Addresses as IPv6, IPv4 mapped, network byte order. */
struct client_key {
	u32 peer[4];    /* the proxy's end */
	u32 peer_port;  /* network byte order in the low half, as in bpf_sock_addr.user_port */
	u32 local_port; /* the app's port, host byte order, as in bpf_sock.src_port */
};

_Static_assert(sizeof(struct client_key) == 24, "steering/layout.py packs this key into 24 bytes");

/* Whom the proxy speaks for on it. */
struct client_name {
	u32 client[4];
	u32 port; /* network byte order in the low half */
};

_Static_assert(sizeof(struct client_name) == 20, "steering/layout.py packs this value into 20 bytes");

/*
 * The entry whose key is all zero, which no connection has, is no connection: `client` is the IPv4 network (mapped) from
 * whose addresses only this pod's proxy connects, of which SOURCES_MASK are fixed.
 */
#define SOURCES_MASK 0xffff0000

#endif
