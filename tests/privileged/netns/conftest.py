"""A pod in a real namespace, opened."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sidestep.netns import Netns
from tests.harness.namespaces import PodNamespace, pod_namespace


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    assert os.geteuid() == 0, "these tests need root: network namespaces are the subject"


@pytest.fixture
def pod() -> Iterator[PodNamespace]:
    with pod_namespace() as space:
        yield space


@pytest.fixture
def netns(pod: PodNamespace) -> Iterator[Netns]:
    with Netns.open(str(pod.pod.path)) as opened:
        yield opened
