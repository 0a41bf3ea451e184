/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sk_lookup: chooses the listening socket of a new connection (or the socket of a datagram) to a target pod.
 *
 * The program runs in the network namespace of one pod, with maps of this pod only, for every packet that matches no
 * connected socket. It returns SK_PASS: without an assigned socket the kernel then looks the listener up as if the program
 * were not attached, so a failure leaves the app reachable.
 *
 * The one exception is a port in the map of closed ports, which the daemon fills for policies that want nothing to reach
 * the app uninspected. A closed port that is steered as well is served; one that is not, or whose listener cannot be
 * assigned, gives SK_DROP: the kernel finds no listener, and refuses a TCP connection with a reset. Connections
 * that exist are looked up elsewhere and go on.
 *
 * The loopback checks come first because the proxy reaches the app through the same lookup. Connections from inside the
 * pod have a loopback address or the pod's own address as remote address, and must reach the app. (`ingress_ifindex` is
 * no help: for a connection to the pod's own address it is the pod's interface, not lo.) Outbound connections that
 * sidestep_egress.c has sent to a loopback address come from the pod's address to 127.192.0.0 or above, or to ::1.
 *
 * BPF_SK_LOOKUP_F_REPLACE: while a new daemon takes over, the programs of both daemons are attached and run in order of
 * attachment. With the flag the last assignment wins, without it the first. Any assignment wins over SK_DROP, and SK_DROP
 * over SK_PASS without an assignment (BPF_PROG_SK_LOOKUP_RUN_ARRAY in the kernel's include/linux/filter.h).
 *
 * Only UAPI types are used; no structure of the running kernel is read.
 */
#include <uapi/linux/bpf.h>

#include "layout.h"

#define FAMILY_IPV4 2   /* AF_INET */
#define FAMILY_IPV6 10  /* AF_INET6 */
#define PROTOCOL_TCP 6  /* IPPROTO_TCP */

/*
 * The maps: a socket hash of struct steered_key, whose values are sockets (written as file descriptors by the daemon, read
 * as references here); a per-CPU array of one u64 for each verdict; a hash of the struct steered_key of closed ports, whose
 * values have no meaning.
 */
#define PORTS MAP(0)
#define COUNTS MAP(1)
#define CLOSED MAP(2)

static __always_inline void count(u32 verdict)
{
	u64 *total = bpf_map_lookup_elem(COUNTS, &verdict);

	if (total)
		*total += 1;
}

static __always_inline int pass(u32 verdict)
{
	count(verdict);
	return SK_PASS;
}

static __always_inline bool is_loopback_ipv4(u32 address)
{
	return (bpf_ntohl(address) >> 24) == 127;
}

/* Where outbound connections are sent to: the upper quarter of 127.0.0.0/8. */
static __always_inline bool is_egress_ipv4(u32 address)
{
	return bpf_ntohl(address) >> 22 == (127 << 2 | 3);
}

static __always_inline bool is_loopback_ipv6(const u32 address[4])
{
	if (address[0] || address[1])
		return false;
	if (!address[2])
		return address[3] == bpf_htonl(1);
	return address[2] == bpf_htonl(0xffff) && is_loopback_ipv4(address[3]);
}

/*
 * Hand the packet to the listener, if it is one. A TCP socket that has stopped listening stays in the map until it is
 * closed. Linux before 5.16 assigns such a socket too, which then drops the packet, so that the client waits where it
 * should reach the app or be refused.
 */
static __always_inline u32 assign(struct bpf_sk_lookup *lookup, struct bpf_sock *listener)
{
	if (lookup->protocol == PROTOCOL_TCP && listener->state != BPF_TCP_LISTEN)
		return VERDICT_FAILED;
	return bpf_sk_assign(lookup, listener, BPF_SK_LOOKUP_F_REPLACE) ? VERDICT_FAILED : VERDICT_STEERED;
}

int sidestep_lookup(struct bpf_sk_lookup *lookup)
{
	struct steered_key key = {};
	struct bpf_sock *listener;
	u32 remote[4], local[4];
	u32 verdict = VERDICT_UNSTEERED;

	if (lookup->family == FAMILY_IPV4) {
		u32 remote_ip4 = lookup->remote_ip4;

		if (is_loopback_ipv4(remote_ip4) || is_egress_ipv4(lookup->local_ip4))
			return pass(VERDICT_LOOPBACK);
		if (remote_ip4 == lookup->local_ip4)
			return pass(VERDICT_OWN);
	} else if (lookup->family == FAMILY_IPV6) {
		remote[0] = lookup->remote_ip6[0];
		remote[1] = lookup->remote_ip6[1];
		remote[2] = lookup->remote_ip6[2];
		remote[3] = lookup->remote_ip6[3];
		local[0] = lookup->local_ip6[0];
		local[1] = lookup->local_ip6[1];
		local[2] = lookup->local_ip6[2];
		local[3] = lookup->local_ip6[3];
		if (is_loopback_ipv6(remote) || is_loopback_ipv6(local))
			return pass(VERDICT_LOOPBACK);
		if (remote[0] == local[0] && remote[1] == local[1] && remote[2] == local[2] && remote[3] == local[3])
			return pass(VERDICT_OWN);
	}

	key.port = lookup->local_port;
	key.transport = lookup->protocol;
	key.family = lookup->family;
	listener = bpf_map_lookup_elem(PORTS, &key);
	if (listener) {
		verdict = assign(lookup, listener);
		bpf_sk_release(listener);
	}
	if (verdict != VERDICT_STEERED && bpf_map_lookup_elem(CLOSED, &key)) {
		count(VERDICT_CLOSED);
		return SK_DROP;
	}
	return pass(verdict);
}
