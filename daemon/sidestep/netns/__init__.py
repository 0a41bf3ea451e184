"""Network namespaces: identity, sockets inside, socket diagnosis."""

from __future__ import annotations

from sidestep.netns.addresses import addresses
from sidestep.netns.datagrams import is_bound, udp_listener, udp_sender, udp_tap
from sidestep.netns.established import Connection, SocketId, destroy, established
from sidestep.netns.listener import accept_queue, cookie, queue_length, reset_waiting, tcp_listener
from sidestep.netns.listening import ListenTable, listening
from sidestep.netns.namespace import Netns, host_netns_id, netns_id
from sidestep.netns.split_listener import prefer, split_listener

__all__ = [
    "Netns",
    "host_netns_id",
    "netns_id",
    "addresses",
    "ListenTable",
    "listening",
    "Connection",
    "SocketId",
    "established",
    "destroy",
    "udp_listener",
    "udp_sender",
    "udp_tap",
    "is_bound",
    "tcp_listener",
    "accept_queue",
    "queue_length",
    "reset_waiting",
    "cookie",
    "split_listener",
    "prefer",
]
