import asyncio

import pytest

from sidestep.steering import compile_program


@pytest.fixture(scope="session")
def program():
    return asyncio.run(compile_program())
