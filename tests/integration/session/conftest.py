import pytest

from tests.integration.session.node import FakeNode


@pytest.fixture
def node(tmp_path):
    fake = FakeNode(tmp_path)
    yield fake
    fake.stop()
