/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout that programs and daemon share: keys and values of the maps, and the order of the counters.
 *
 * daemon/sidestep/steering/layout.py mirrors this file and defines type and size of each map. The assertions below check
 * sizes of keys, values and arrays at compile time. The values of the enum index one per-CPU array.
 */
#ifndef SIDESTEP_LAYOUT_H
#define SIDESTEP_LAYOUT_H

/*
 * A reference to the map at `index` in layout.py's list. The loader replaces it by a descriptor. bcc's own tables are not
 * used, because bcc creates them while it compiles, and the compiler has no capability to do so.
 */
#define MAP(index) ((void *)bpf_pseudo_fd(1, index))

/* A steered or closed port. One entry per family, although one dual-stack listener usually serves both. */
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
	VERDICT_LOOPBACK,  /* a loopback address is an end of it: somebody in the pod, maybe the proxy itself */
	VERDICT_OWN,       /* the remote end is the local address: a dial from inside the pod to the pod's own address */
	VERDICT_FAILED,    /* the socket in the map cannot be assigned: the usual lookup goes on */
	VERDICT_CLOSED,    /* not handed to a listener, and the port is closed: the connection is refused */
	VERDICT_COUNT
};

_Static_assert(VERDICT_COUNT == 6, "steering/layout.py has a counter for each of 6 verdicts");

/* A connection of the proxy as the app sees it. Addresses as IPv6, IPv4 mapped, network byte order. */
struct client_key {
	u32 peer[4];    /* the proxy's end */
	u32 peer_port;  /* network byte order in the low half, as in bpf_sock_addr.user_port */
	u32 local_port; /* the app's port, host byte order, as in bpf_sock.src_port */
};

_Static_assert(sizeof(struct client_key) == 24, "steering/layout.py packs this key into 24 bytes");

/* The client on whose behalf the proxy made the connection. */
struct client_name {
	u32 client[4];
	u32 port; /* network byte order in the low half */
};

_Static_assert(sizeof(struct client_name) == 20, "steering/layout.py packs this value into 20 bytes");

/*
 * The entry with the all-zero key, which no connection has, holds the loopback network of the proxy: `client` is that IPv4
 * network (mapped), and SOURCES_MASK its netmask. Only this pod's proxy connects from its addresses.
 */
#define SOURCES_MASK 0xffff0000

#endif
