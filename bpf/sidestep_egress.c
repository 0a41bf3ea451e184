/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Outbound connections of one pod: connect() is sent to the pod proxy, which learns the original destination.
 *
 * Programs on the pod's cgroup, so for sockets that the pod's own processes made:
 *   connect4, connect6   choose, claim an entry, write the original destination into it, rewrite the address
 *   peer4, peer6         getpeername() answers with the original destination
 *   send4, send6         refuse QUIC (UDP to port 443) from unconnected sockets, where the settings say so
 *   released             the app has closed its last descriptor of a socket
 * and one on the pod's network namespace:
 *   sidestep_egress      hands what was rewritten to the proxy's listener
 *
 * The address carries the index of the entry. IPv4 (also from an AF_INET6 socket, mapped): NETWORK.x.y with the
 * original port, where x.y is the index and NETWORK a /16 of 127.0.0.0/8 that each attachment chooses for itself. IPv6:
 * ::1 and the index as port, because a socket with IPV6_V6ONLY cannot be sent to an IPv4 address, and IPv6 has one
 * loopback address only. Index 0 is never used. In both cases an unbound socket is first bound to the pod's own address
 * (without a port), so getsockname() shows it. Other dials from inside the pod to a loopback address come from one, too;
 * so one that comes from another address is a steered one. If the app itself bound the socket to a port without an
 * address, the source is a loopback address as well, and the entry holds that port.
 *
 * States of an entry, and who changes them:
 *
 *   FREE      never used                                                   -> IN_USE    connect
 *   IN_USE    the app's socket exists                                      -> RELEASED  released, or connect again
 *   RELEASED  the app's socket is closed                                   -> IN_USE    connect, for another socket
 *
 * `taken == sequence`: the proxy has accepted the connection and read the entry. Invariants:
 *   - a RELEASED entry is claimed at once if it is taken, else after UNTAKEN: until then a connection that the app has
 *     already closed may wait in the listener's queue, with data that must go to its own destination;
 *   - an IN_USE entry is never claimed, unless it is not taken for STALE. Such a connection never came about, and the
 *     end of its socket was not seen: subflows of MPTCP end without `released`;
 *   - a lookup is answered for an IN_USE entry that is not taken. A SYN to any other finds what the app would find.
 *
 * Claiming: several CPUs may want one entry. `busy` is a try-lock by an atomic addition that returns nothing (bcc's
 * default instruction set has no compare-and-exchange): who reads 1 after adding its own 1 has it, and who reads more
 * goes on to the next entry. As a second line the cookie is read back.
 *
 * The kernel completes the app's handshake before the proxy dials, so an app does not see a refused or unanswered dial in
 * connect(): its connection is reset instead. For a while after that the destination is in a map, and connections to it
 * go out directly, where the app sees what is wrong (or are refused with EGRESS_FAIL). So clients that try several
 * addresses find the one that answers.
 *
 * All programs return 1 (go on), except where a connection is refused: 0, which the app sees as EPERM. A predecessor's
 * connect program runs first (order of attachment); this one sees a loopback address then, and goes on.
 *
 * Only UAPI types are used; no structure of the running kernel is read.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>

#include "egress_layout.h"

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_MPTCP 262
#define PORT_QUIC 443

#define PROBES 64     /* entries tried for one connection: the low bits of its cookie, and steps from there */
#define UNTAKEN 60    /* about seconds (2^30 ns) */
#define STALE 600     /* about seconds */

/*
 * The maps: an array of one struct egress_settings; a trie of struct egress_prefix; a hash of struct egress_port; the
 * mmapable array of struct egress_entry; a per-CPU array of one u64 for each verdict; a socket map of one listener; an LRU
 * hash of struct egress_destination.
 */
#define SETTINGS MAP(0)
#define PREFIXES MAP(1)
#define PORTS MAP(2)
#define ENTRIES MAP(3)
#define COUNTS MAP(4)
#define LISTENER MAP(5)
#define DOWN MAP(6)

static __always_inline void count(u32 verdict)
{
	u64 *total = bpf_map_lookup_elem(COUNTS, &verdict);

	if (total)
		*total += 1;
}

static __always_inline struct egress_settings *settings_now(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(SETTINGS, &zero);
}

static __always_inline u32 now(void)
{
	return bpf_ktime_get_ns() >> 30;
}

static __always_inline bool is_mapped(const u32 address[4])
{
	return !address[0] && !address[1] && address[2] == bpf_htonl(0xffff);
}

/* Loopback, or unspecified: connect() takes that for loopback. */
static __always_inline bool is_inside(const u32 address[4])
{
	if (is_mapped(address))
		return !address[3] || (bpf_ntohl(address[3]) >> 24) == 127;
	return !address[0] && !address[1] && !address[2] && (!address[3] || address[3] == bpf_htonl(1));
}

static __always_inline bool is_zero(const u32 address[4])
{
	return !address[0] && !address[1] && !address[2] && !address[3];
}

static __always_inline bool is_selected(const struct egress_settings *settings, const struct egress_destination *to)
{
	struct egress_prefix prefix = {.length = 160, .generation = settings->generation};
	struct egress_port port = {.generation = settings->generation, .port = to->port};
	u32 *steered;

	if (!(settings->flags & EGRESS_ALL_PORTS) && !bpf_map_lookup_elem(PORTS, &port))
		return false;
	prefix.address[0] = to->address[0];
	prefix.address[1] = to->address[1];
	prefix.address[2] = to->address[2];
	prefix.address[3] = to->address[3];
	steered = bpf_map_lookup_elem(PREFIXES, &prefix);
	return steered && *steered;
}

static __always_inline bool is_down(const struct egress_destination *to)
{
	u32 *until = bpf_map_lookup_elem(DOWN, to);

	return until && (s32)(*until - now()) > 0;
}

static __always_inline bool is_served(void)
{
	u32 zero = 0;
	struct bpf_sock *listener = bpf_map_lookup_elem(LISTENER, &zero);

	if (!listener)
		return false;
	bpf_sk_release(listener);
	return true;
}

static __always_inline bool is_claimable(volatile struct egress_entry *entry, u64 cookie, u32 time)
{
	bool taken = entry->taken == entry->sequence;

	if (entry->state == ENTRY_IN_USE && entry->cookie == cookie) {
		/* The socket connects again; its last connection may still wait in the queue. */
		entry->state = ENTRY_RELEASED;
		entry->since = time;
	}
	if (entry->state == ENTRY_FREE)
		return true;
	if (entry->state == ENTRY_RELEASED)
		return taken || time - entry->since > UNTAKEN;
	return !taken && time - entry->since > STALE;
}

/* Claim an entry for the socket `cookie` and fill it; its index, or 0. */
static __always_inline u32 claim(const struct egress_settings *settings, u64 cookie, const struct egress_destination *to,
				 u32 source_port, u32 family)
{
	volatile struct egress_entry *entry;
	u32 time = now();
	u32 step = (((u32)cookie * 2654435769U) >> 8) | 1; /* odd: it leads to every entry of a power of two */
	u32 index, probe;
	bool mine;

	for (probe = 0; probe < PROBES; probe++) {
		index = ((u32)cookie + probe * step) & settings->mask;
		if (!index)
			continue;
		entry = bpf_map_lookup_elem(ENTRIES, &index);
		if (!entry)
			return 0;
		if (!is_claimable(entry, cookie, time))
			continue;
		__sync_fetch_and_add(&entry->busy, 1);
		mine = entry->busy == 1 && is_claimable(entry, cookie, time);
		if (mine) {
			entry->cookie = cookie;
			entry->address[0] = to->address[0];
			entry->address[1] = to->address[1];
			entry->address[2] = to->address[2];
			entry->address[3] = to->address[3];
			entry->since = time;
			entry->sequence += 1;
			if (entry->taken == entry->sequence)
				entry->sequence += 1;
			entry->port = to->port;
			entry->source_port = source_port;
			entry->family = family;
			entry->state = ENTRY_IN_USE;
		}
		__sync_fetch_and_add(&entry->busy, -1);
		if (mine && entry->cookie == cookie)
			return index;
	}
	return 0;
}

/* Whether the listener can be reached from this socket at all. `own` is the pod's address of the family. */
static __always_inline bool is_reachable(struct bpf_sock_addr *address, const struct egress_settings *settings,
					 const u32 own[4], u32 family, const u32 source[4])
{
	struct bpf_sock *sk = address->sk;

	if (!sk || sk->bound_dev_if)
		return false;
	if (settings->netns && bpf_get_netns_cookie(address) != settings->netns)
		return false;
	if (family == FAMILY_IPV6 && is_zero(own))
		return false;
	return is_zero(source) || !is_inside(source) || (is_mapped(source) && !source[3]);
}

static __always_inline int not_steered(const struct egress_settings *settings, u32 verdict)
{
	count(verdict);
	if (!(settings->flags & EGRESS_FAIL))
		return 1;
	count(EGRESS_CLOSED);
	return 0;
}

static __always_inline int datagram(const struct egress_destination *to)
{
	struct egress_settings *settings;

	if (to->port != PORT_QUIC || is_inside(to->address))
		return 1;
	settings = settings_now();
	if (!settings || !(settings->flags & EGRESS_BLOCK_QUIC) || !is_selected(settings, to))
		return 1;
	count(EGRESS_QUIC);
	return 0;
}

/* Choose and claim; the index to rewrite to, or 0 with what the program returns in `result`. */
static __always_inline u32 steer(struct bpf_sock_addr *address, const struct egress_settings *settings,
				 const struct egress_destination *to, u32 family, const u32 source[4], u32 source_port,
				 int *result)
{
	u32 index;

	*result = 1;
	if (is_inside(to->address)) {
		count(EGRESS_LOOPBACK);
		return 0;
	}
	if (!is_selected(settings, to)) {
		count(EGRESS_UNSELECTED);
		return 0;
	}
	if (is_down(to)) {
		*result = not_steered(settings, EGRESS_DOWN);
		return 0;
	}
	if (!is_reachable(address, settings, settings->own6, family, source)) {
		*result = not_steered(settings, EGRESS_UNREACHABLE);
		return 0;
	}
	if (!is_served()) {
		*result = not_steered(settings, EGRESS_UNSERVED);
		return 0;
	}
	index = claim(settings, bpf_get_socket_cookie(address), to, source_port, family);
	if (!index)
		*result = not_steered(settings, EGRESS_FULL);
	return index;
}

static __always_inline void give_back(u32 index)
{
	struct egress_entry *entry = bpf_map_lookup_elem(ENTRIES, &index);

	if (entry) {
		entry->taken = entry->sequence;
		entry->state = ENTRY_RELEASED;
	}
}

int sidestep_conn4(struct bpf_sock_addr *address)
{
	struct egress_destination to = {};
	u32 source[4] = {};
	u32 protocol = address->protocol;
	struct egress_settings *settings;
	struct bpf_sock *sk;
	struct sockaddr_in own = {};
	u32 index, source_port = 0;
	int result;

	to.address[2] = bpf_htonl(0xffff);
	to.address[3] = address->user_ip4;
	to.port = bpf_ntohs(address->user_port);
	if (protocol == PROTOCOL_UDP)
		return datagram(&to);
	if (protocol != PROTOCOL_TCP)
		return 1;
	settings = settings_now();
	if (!settings)
		return 1;
	sk = address->sk;
	if (sk) {
		source[2] = bpf_htonl(0xffff);
		source[3] = sk->src_ip4;
		source_port = sk->src_port;
	}
	index = steer(address, settings, &to, FAMILY_IPV4, source, source_port, &result);
	if (!index)
		return result;
	if (settings->own4[3] && !source[3] && !source_port) {
		own.sin_family = FAMILY_IPV4;
		own.sin_addr.s_addr = settings->own4[3];
		if (bpf_bind(address, (struct sockaddr *)&own, sizeof(own))) {
			give_back(index);
			return not_steered(settings, EGRESS_FAILED);
		}
	}
	address->user_ip4 = settings->network | bpf_htonl(index);
	count(EGRESS_STEERED);
	return 1;
}

int sidestep_conn6(struct bpf_sock_addr *address)
{
	struct egress_destination to = {};
	u32 source[4] = {};
	u32 protocol = address->protocol;
	struct egress_settings *settings;
	struct bpf_sock *sk;
	struct sockaddr_in6 own = {};
	u32 index, family, source_port = 0;
	u32 *bound = own.sin6_addr.in6_u.u6_addr32;
	bool unbound;
	int result;

	to.address[0] = address->user_ip6[0];
	to.address[1] = address->user_ip6[1];
	to.address[2] = address->user_ip6[2];
	to.address[3] = address->user_ip6[3];
	to.port = bpf_ntohs(address->user_port);
	if (protocol == PROTOCOL_UDP)
		return datagram(&to);
	if (protocol != PROTOCOL_TCP)
		return 1;
	settings = settings_now();
	if (!settings)
		return 1;
	sk = address->sk;
	if (sk) {
		source[0] = sk->src_ip6[0];
		source[1] = sk->src_ip6[1];
		source[2] = sk->src_ip6[2];
		source[3] = sk->src_ip6[3];
		source_port = sk->src_port;
	}
	unbound = is_zero(source);
	family = is_mapped(to.address) ? FAMILY_IPV4 : FAMILY_IPV6;
	index = steer(address, settings, &to, family, source, source_port, &result);
	if (!index)
		return result;
	own.sin6_family = FAMILY_IPV6;
	if (family == FAMILY_IPV4) {
		bound[2] = bpf_htonl(0xffff);
		bound[3] = settings->own4[3];
		unbound = unbound && bound[3];
	} else {
		bound[0] = settings->own6[0];
		bound[1] = settings->own6[1];
		bound[2] = settings->own6[2];
		bound[3] = settings->own6[3];
	}
	if (unbound && !source_port && bpf_bind(address, (struct sockaddr *)&own, sizeof(own))) {
		give_back(index);
		return not_steered(settings, EGRESS_FAILED);
	}
	count(EGRESS_STEERED);
	if (family == FAMILY_IPV4) {
		address->user_ip6[3] = settings->network | bpf_htonl(index);
		return 1;
	}
	address->user_ip6[0] = 0;
	address->user_ip6[1] = 0;
	address->user_ip6[2] = 0;
	address->user_ip6[3] = bpf_htonl(1);
	address->user_port = bpf_htons(index);
	return 1;
}

int sidestep_send4(struct bpf_sock_addr *address)
{
	struct egress_destination to = {};

	to.address[2] = bpf_htonl(0xffff);
	to.address[3] = address->user_ip4;
	to.port = bpf_ntohs(address->user_port);
	return datagram(&to);
}

int sidestep_send6(struct bpf_sock_addr *address)
{
	struct egress_destination to = {};

	to.address[0] = address->user_ip6[0];
	to.address[1] = address->user_ip6[1];
	to.address[2] = address->user_ip6[2];
	to.address[3] = address->user_ip6[3];
	to.port = bpf_ntohs(address->user_port);
	return datagram(&to);
}

/* The index in an IPv4 address of our network, or 0. */
static __always_inline u32 index_in(u32 address)
{
	struct egress_settings *settings = settings_now();

	if (!settings || (address & bpf_htonl(EGRESS_NETMASK)) != settings->network)
		return 0;
	return bpf_ntohl(address) & ~EGRESS_NETMASK;
}

/* The entry of a steered connection of an existing socket; a subflow of MPTCP has another cookie than its socket. */
static __always_inline struct egress_entry *entry_of(u32 index, u64 cookie, u32 protocol)
{
	struct egress_entry *entry;

	if (!index)
		return NULL;
	entry = bpf_map_lookup_elem(ENTRIES, &index);
	if (!entry || entry->state != ENTRY_IN_USE || (entry->cookie != cookie && protocol != PROTOCOL_MPTCP))
		return NULL;
	return entry;
}

int sidestep_opeer4(struct bpf_sock_addr *address)
{
	u32 index = index_in(address->user_ip4);
	struct egress_entry *entry = entry_of(index, bpf_get_socket_cookie(address), address->protocol);

	if (!entry)
		return 1;
	address->user_ip4 = entry->address[3];
	address->user_port = bpf_htons(entry->port);
	return 1;
}

int sidestep_opeer6(struct bpf_sock_addr *address)
{
	struct egress_entry *entry;
	u32 peer[4];
	u32 index = 0;

	peer[0] = address->user_ip6[0];
	peer[1] = address->user_ip6[1];
	peer[2] = address->user_ip6[2];
	peer[3] = address->user_ip6[3];
	if (is_mapped(peer))
		index = index_in(peer[3]);
	else if (is_inside(peer))
		index = bpf_ntohs(address->user_port);
	entry = entry_of(index, bpf_get_socket_cookie(address), address->protocol);
	if (!entry)
		return 1;
	address->user_ip6[0] = entry->address[0];
	address->user_ip6[1] = entry->address[1];
	address->user_ip6[2] = entry->address[2];
	address->user_ip6[3] = entry->address[3];
	address->user_port = bpf_htons(entry->port);
	return 1;
}

int sidestep_closed(struct bpf_sock *sk)
{
	u64 cookie = bpf_get_socket_cookie(sk);
	struct egress_settings *settings;
	struct egress_entry *entry;
	u32 peer[4];
	u32 index = 0;
	u32 family = sk->family;

	if (family == FAMILY_IPV4) {
		index = index_in(sk->dst_ip4);
	} else if (family == FAMILY_IPV6) {
		peer[0] = sk->dst_ip6[0];
		peer[1] = sk->dst_ip6[1];
		peer[2] = sk->dst_ip6[2];
		peer[3] = sk->dst_ip6[3];
		if (is_mapped(peer))
			index = index_in(peer[3]);
		else if (is_inside(peer))
			index = bpf_ntohs((u16)sk->dst_port);
	}
	entry = entry_of(index, cookie, sk->protocol);
	if (!entry) {
		/* A connection that failed early has lost its address. */
		settings = settings_now();
		if (!settings)
			return 1;
		entry = entry_of((u32)cookie & settings->mask, cookie, 0);
	}
	if (entry) {
		entry->since = now();
		entry->state = ENTRY_RELEASED;
	}
	return 1;
}

int sidestep_egress(struct bpf_sk_lookup *lookup)
{
	struct egress_settings *settings;
	struct egress_entry *entry;
	struct bpf_sock *listener;
	u32 zero = 0;
	u32 index = 0;
	u32 local[4], remote[4] = {};
	u32 family = lookup->family;

	if (lookup->protocol != PROTOCOL_TCP)
		return SK_PASS;
	if (family == FAMILY_IPV4) {
		index = index_in(lookup->local_ip4);
		remote[2] = bpf_htonl(0xffff);
		remote[3] = lookup->remote_ip4;
	} else if (family == FAMILY_IPV6) {
		remote[0] = lookup->remote_ip6[0];
		remote[1] = lookup->remote_ip6[1];
		remote[2] = lookup->remote_ip6[2];
		remote[3] = lookup->remote_ip6[3];
		local[0] = lookup->local_ip6[0];
		local[1] = lookup->local_ip6[1];
		local[2] = lookup->local_ip6[2];
		local[3] = lookup->local_ip6[3];
		if (!is_mapped(local) && is_inside(local))
			index = lookup->local_port;
	}
	if (!index)
		return SK_PASS;
	entry = bpf_map_lookup_elem(ENTRIES, &index);
	if (!entry || entry->state != ENTRY_IN_USE || entry->taken == entry->sequence || entry->family != family)
		return SK_PASS;
	settings = settings_now();
	if (!settings)
		return SK_PASS;
	if (is_inside(remote) && (family == FAMILY_IPV6 || settings->own4[3]) &&
	    (!entry->source_port || entry->source_port != (u16)bpf_ntohs(lookup->remote_port)))
		return SK_PASS;
	listener = bpf_map_lookup_elem(LISTENER, &zero);
	if (!listener || bpf_sk_assign(lookup, listener, BPF_SK_LOOKUP_F_REPLACE))
		count(EGRESS_LOST);
	if (listener)
		bpf_sk_release(listener);
	return SK_PASS;
}
