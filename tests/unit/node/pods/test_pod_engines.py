"""The engines beside a proxy, as they follow the policies of a pod."""

import asyncio
from types import SimpleNamespace

from sidestep.model.condition import ConditionType
from sidestep.model.errors import RefusedError
from sidestep.model.waf import Waf
from sidestep.node.conditions import Conditions, Statements
from sidestep.node.pods.pod_engines import PodEngines
from sidestep.policy.seclang import CustomRules
from sidestep.policy.waf import PolicyWaf, alone
from sidestep.protocols.waf_messages import MAX_PROFILES
from sidestep.snapshots.ports import PortSnapshot
from tests.unit.node.scenes import pod


class NoInspectors:
    """Those of a node that has no libmodsecurity."""

    version, names = "", ()

    def want(self, inspector):
        pass

    def release(self, inspector):
        pass

    async def spawn(self, uid):
        raise RefusedError("libmodsecurity is not here")


def port(number):
    waf = alone(PolicyWaf("shop/p", False, False, Waf(threshold=number), CustomRules()), 0)
    return PortSnapshot(number, "tcp", tls="never", http2="never", rules=(), waf=waf)


def test_more_settings_of_firewalls_than_an_inspector_takes_are_stated_and_taken_back():
    async def go():
        conditions, some = Conditions(), pod()
        statements = Statements(conditions, some.key)
        statements.begin()
        tools = SimpleNamespace(inspectors=NoInspectors(), supervisor=SimpleNamespace(cgroups=None))
        engines = PodEngines(some, 100_000, tools, statements=statements, proxy=None, changed=lambda: None)

        def stated(count):
            engines.follow(some, [port(number) for number in range(1, count + 1)])
            return [each.text for each in conditions.all() if each.type is ConditionType.NOT_INSPECTED]

        try:
            assert stated(MAX_PROFILES) == []
            [text] = stated(MAX_PROFILES + 1)
            assert f"up to {MAX_PROFILES + 1} different settings of firewalls" in text
            assert stated(0) == []
        finally:
            await engines.aclose()

    asyncio.run(go())
