"""Writes the configuration of a pod's Suricata. Pure.

Each setting that bounds memory is here; together with the program itself Suricata then takes some 35 MiB. What is not
HTTP is not parsed, because the feed has nothing else that was decrypted. `stream.inline` has Suricata look at data when
it comes; otherwise it would wait for the other side's acknowledgement, and for one more packet after that, so that the
last answer of a connection would be inspected at its end. The algorithm for many patterns is Hyperscan where Suricata
has it: 4,000 rules take 52 MiB with it, and 163 MiB with the other one.

JSON is YAML, so the file is encoded as JSON. Paths are those of the root that `confinement` builds.
"""

from __future__ import annotations

import json
from typing import Any, Final

EVE: Final = "/eve.sock"
RULES: Final = "/pod.rules"
CONFIG: Final = "/suricata.yaml"
CLASSES: Final = "/classification.config"
REFERENCES: Final = "/reference.config"
THRESHOLDS: Final = "/threshold.config"
LOGS: Final = "/log"
"""An empty folder that looks writable: Suricata does not start without one, and nothing is ever written there."""
STATS: Final = 2
"""Seconds between two records that say what Suricata has seen: its signs of life."""
BODY: Final = "128kb"
"""Of a body, how much is inspected."""

_GROUPS: Final = (
    "HOME_NET", "EXTERNAL_NET", "HTTP_SERVERS", "SMTP_SERVERS", "SQL_SERVERS", "DNS_SERVERS", "TELNET_SERVERS",
    "AIM_SERVERS", "DC_SERVERS",
)  # fmt: skip
_PORTS: Final = ("HTTP_PORTS", "SHELLCODE_PORTS", "ORACLE_PORTS", "SSH_PORTS", "FILE_DATA_PORTS", "FTP_PORTS")
_PARSERS: Final = (
    "bittorrent-dht", "dcerpc", "dhcp", "dnp3", "dns", "enip", "ftp", "ike", "imap", "krb5", "modbus", "mqtt", "nfs",
    "ntp", "pgsql", "quic", "rdp", "rfb", "sip", "smb", "smtp", "snmp", "ssh", "telnet", "tftp", "tls",
)  # fmt: skip
"""Protocols that are not parsed."""

CLASSIFICATION: Final = """\
config classification: attempted-admin,Attempted Administrator Privilege Gain,1
config classification: attempted-user,Attempted User Privilege Gain,1
config classification: web-application-attack,Web Application Attack,1
config classification: trojan-activity,A Network Trojan was detected,1
config classification: command-and-control,Malware Command and Control Activity Detected,1
config classification: exploit-kit,Exploit Kit Activity Detected,1
config classification: credential-theft,Successful Credential Theft Detected,1
config classification: attempted-recon,Attempted Information Leak,2
config classification: successful-recon-limited,Information Leak,2
config classification: web-application-activity,Access to a Potentially Vulnerable Web Application,2
config classification: suspicious-login,An attempted login using a suspicious username was detected,2
config classification: attempted-dos,Attempted Denial of Service,2
config classification: bad-unknown,Potentially Bad Traffic,2
config classification: policy-violation,Potential Corporate Privacy Violation,1
config classification: default-login-attempt,Attempt to Login By a Default Username and Password,2
config classification: misc-attack,Misc Attack,2
config classification: misc-activity,Misc activity,3
config classification: not-suspicious,Not Suspicious Traffic,3
config classification: unknown,Unknown Traffic,3
config classification: protocol-command-decode,Generic Protocol Command Decode,3
config classification: string-detect,A suspicious string was detected,3
"""
"""Names for `classtype`, with the texts and severities of Suricata's own file."""

_KINDS: Final = ("arachNIDS", "bugtraq", "bid", "cve", "exploitdb", "md5", "msft", "nessus", "osvdb", "secunia", "url")
"""Kinds of `reference` that rules may have. Alerts do not show them, so that no address belongs to them here."""


def files(rules: str) -> dict[str, bytes]:
    """All files of a Suricata with these rules, by their paths."""
    texts = {
        CONFIG: configuration(),
        CLASSES: CLASSIFICATION,
        REFERENCES: "".join(f"config reference: {kind} {kind}:\n" for kind in _KINDS),
        THRESHOLDS: "",
        RULES: rules,
    }
    return {path: text.encode() for path, text in texts.items()}


def configuration() -> str:
    """The configuration file."""
    parsers: dict[str, Any] = {name: {"enabled": "no"} for name in _PARSERS}
    body = {"request-body-limit": BODY, "response-body-limit": BODY}
    parsers["http"] = {"enabled": "yes", "libhtp": {"default-config": {"personality": "IDS", **body}}}
    parsers["http2"] = {"enabled": "yes", "max-streams": 1024, "max-table-size": 65536}
    eve = {
        "enabled": "yes",
        "filetype": "unix_stream",
        "filename": EVE,
        "types": [{"alert": {"tagged-packets": "no"}}, {"stats": {"totals": "yes", "threads": "no", "deltas": "no"}}],
    }
    settings: dict[str, Any] = {
        "vars": {
            "address-groups": dict.fromkeys(_GROUPS, "any"),
            "port-groups": dict.fromkeys(_PORTS, "any"),
        },
        "default-log-dir": LOGS,
        "default-rule-path": "/",
        "rule-files": [RULES],
        "classification-file": CLASSES,
        "reference-config-file": REFERENCES,
        "threshold-file": THRESHOLDS,
        "stats": {"enabled": "yes", "interval": STATS},
        "outputs": [{"eve-log": eve}],
        "logging": {"default-log-level": "warning", "outputs": [{"console": {"enabled": "yes"}}]},
        "unix-command": {"enabled": "no"},
        "app-layer": {"protocols": parsers},
        "runmode": "single",
        "threading": {"set-cpu-affinity": "no", "stack-size": "1mb"},
        "max-pending-packets": 64,
        "flow": {"memcap": "4mb", "hash-size": 1024, "prealloc": 64, "managers": 1, "recyclers": 1},
        "flow-timeouts": {"tcp": {"new": 30, "established": 600, "closed": 1, "emergency-closed": 0}},
        "stream": {
            "memcap": "4mb",
            "inline": "yes",
            "checksum-validation": "no",
            "prealloc-sessions": 16,
            "reassembly": {"memcap": "8mb", "depth": 0, "segment-prealloc": 64, "randomize-chunk-size": "no"},
        },
        "defrag": {"memcap": "1mb", "hash-size": 256, "trackers": 16, "max-frags": 64, "prealloc": "no"},
        "host": {"hash-size": 64, "prealloc": 4, "memcap": "1mb"},
        "ippair": {"hash-size": 64, "prealloc": 4, "memcap": "1mb"},
        "detect": {"profile": "low", "sgh-mpm-context": "auto"},
        "mpm-algo": "auto",
        "spm-algo": "bm",
        "pcre": {"match-limit": 3500, "match-limit-recursion": 1500},
        "luajit": {"states": 0},
        "security": {"limit-noproc": "false", "lua": {"allow-rules": "false"}},
    }  # fmt: skip
    return f"%YAML 1.1\n---\n{json.dumps(settings, indent=1)}\n"
