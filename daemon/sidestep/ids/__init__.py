"""Suricata beside a pod proxy: one process for each target pod whose policies have `ids`.

`rules` reads rule sets, `suricata_config` writes Suricata's configuration, `confinement` and `launcher` lock a process
in and start Suricata in it, `suricata` is one such process as the node daemon holds it, `events` reads what it says.
Who keeps one alive for a pod is `node.pods.pod_ids`; who feeds it is `proxy.mirror.ids_feed`.
"""
