"""The inspector: judges requests of one pod by ModSecurity and the OWASP Core Rule Set, in a process without keys.

    node daemon ─ zygote       libmodsecurity and the Core Rule Set loaded once; one thread       zygote.py
                   └ inspector one per target pod whose policies have `waf`                       worker.py

States of an inspector, and what moves it on:

    forked      the zygote made it; it holds one end of a SOCK_SEQPACKET socketpair and the rules
    locked      `confinement.lock` returned; it says Ready. If it did not, it says Ready with the error, and ends
    configured  it has taken the profiles of its pod; from then on it answers questions, one after the other
    ended       by itself when the other end closes; else killed by whoever holds its pidfd

Invariants:

  * An inspector holds no key, no socket but the one, no network, no file, no capability, nothing of another pod, and
    nothing of its own pod but the question that it works on. The zygote has never seen a request or a policy, so no
    inspector can find one of another pod in memory that it inherited.
  * It is not trusted. Every byte that an attacker sends goes through libmodsecurity, libxml2 and PCRE here. So whoever
    asks bounds what it believes, waits no longer than a deadline, and has an inspector killed that misses it: it cannot
    be interrupted otherwise. What it may do to its asker is answer wrongly.
  * It keeps nothing between two questions but the rules.
  * What it says of a request are numbers: ids of rules and a score, never what matched (`logdata` quotes it).

Why a process, and why per pod: rules cost milliseconds, which would stall every connection of a proxy; they are parsed
and run by C++ of which a proxy with a private key must not depend; and an inspector that serves several pods would join
what promise 4 of the design keeps apart.
"""
