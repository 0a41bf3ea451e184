"""A name server on loopback, over UDP and TCP, that answers as a test says."""

from __future__ import annotations

import contextlib
import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class NameServer:
    """`records` maps (name, kind) to addresses; `ways` maps a name to "truncated", "fails", "silent", "half"
    (silent about AAAA) or "garbage"."""

    def __init__(self, records, ways=None):
        self.records = records
        self.ways = ways or {}
        self.asked = []
        self.over_tcp = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.port = self._udp.getsockname()[1]
        self._tcp = socket.create_server(("127.0.0.1", self.port))

    def __enter__(self):
        self._threads = [threading.Thread(target=each) for each in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for sock in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waking:
            waking.sendto(b"", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join(20)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self):
        while True:
            try:
                data, peer = self._udp.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            answer = self._answer(data, over_tcp=False)
            if answer is not None:
                self._udp.sendto(b"\x07garbage", peer)
                self._udp.sendto(answer, peer)

    def _serve_tcp(self):
        while True:
            try:
                sock, _ = self._tcp.accept()
            except OSError:
                return
            with sock:
                data = sock.recv(4096)
                answer = self._answer(data[2:], over_tcp=True)
                for each in len(answer).to_bytes(2, "big") + answer:
                    sock.sendall(bytes((each,)))

    def _answer(self, data, *, over_tcp):
        asked = dns.message.from_wire(data)
        [question] = asked.question
        name, kind = str(question.name)[:-1], dns.rdatatype.to_text(question.rdtype)
        (self.over_tcp if over_tcp else self.asked).append((name, kind))
        found = dns.message.make_response(asked)
        way = self.ways.get(name, "")
        addresses = self.records.get((name, kind), ())
        if way == "silent" or (way == "half" and kind == "AAAA"):
            return None
        if way == "garbage":
            return data[:2] + b"\xff" * 60
        if way == "fails":
            found.set_rcode(dns.rcode.SERVFAIL)
        elif way == "truncated" and not over_tcp:
            found.flags |= dns.flags.TC
        elif addresses:
            found.answer.append(dns.rrset.from_text(question.name, 30, "IN", kind, *addresses))
        elif not any(known == name for known, _ in self.records):
            found.set_rcode(dns.rcode.NXDOMAIN)
        return found.to_wire()
