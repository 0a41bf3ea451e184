/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cgroup/getpeername4 and 6: report the client's address to the app.
 *
 * The proxy connects to the app from an address of its own. These programs, attached to the pod's cgroup, change what
 * accept() and getpeername() return for connections in the map CLIENTS: the address and port of the proxy's client.
 * Connection and packets stay as they are. The daemon adds an entry before the proxy connects and deletes it when the
 * connection is over.
 *
 * Both programs always return 1 (continue). A connection that is not in the map is reported unchanged, unless it comes
 * from a loopback address that only the proxy uses. In that case its entry was deleted already (the client left before
 * the app accepted, or the proxy was killed). The app may trust loopback, so it is told its own address: what it would
 * see if the proxy's connections were never renamed.
 *
 * A dual-stack app sees IPv4 peers as mapped IPv6 addresses; they have one key whichever program meets them.
 */
#include <uapi/linux/bpf.h>

#include "layout.h"

/* The map: a hash of struct client_key and struct client_name. */
#define CLIENTS MAP(0)

static __always_inline bool is_own_source(u32 address)
{
	struct client_key none = {};
	struct client_name *sources;

	if (bpf_ntohl(address) >> 24 != 127)
		return false;
	sources = bpf_map_lookup_elem(CLIENTS, &none);
	return sources && (address & bpf_htonl(SOURCES_MASK)) == sources->client[3];
}

int sidestep_peer4(struct bpf_sock_addr *address)
{
	struct client_key key = {};
	struct client_name *name;
	struct bpf_sock *sk = address->sk;

	if (!sk)
		return 1;
	key.peer[2] = bpf_htonl(0xffff);
	key.peer[3] = address->user_ip4;
	key.peer_port = address->user_port;
	key.local_port = sk->src_port;
	name = bpf_map_lookup_elem(CLIENTS, &key);
	if (name) {
		address->user_ip4 = name->client[3];
		address->user_port = name->port;
	} else if (is_own_source(address->user_ip4)) {
		address->user_ip4 = sk->src_ip4;
	}
	return 1;
}

int sidestep_peer6(struct bpf_sock_addr *address)
{
	struct client_key key = {};
	struct client_name *name;
	struct bpf_sock *sk = address->sk;

	if (!sk)
		return 1;
	key.peer[0] = address->user_ip6[0];
	key.peer[1] = address->user_ip6[1];
	key.peer[2] = address->user_ip6[2];
	key.peer[3] = address->user_ip6[3];
	key.peer_port = address->user_port;
	key.local_port = sk->src_port;
	name = bpf_map_lookup_elem(CLIENTS, &key);
	if (name) {
		address->user_ip6[0] = name->client[0];
		address->user_ip6[1] = name->client[1];
		address->user_ip6[2] = name->client[2];
		address->user_ip6[3] = name->client[3];
		address->user_port = name->port;
	} else if (!key.peer[0] && !key.peer[1] && key.peer[2] == bpf_htonl(0xffff) && is_own_source(key.peer[3])) {
		address->user_ip6[3] = sk->src_ip6[3];
	}
	return 1;
}
