"""What is gRPC, by its Content-Type."""

import pytest

from sidestep.protocols.grpc import is_grpc


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc+json;charset=utf-8", True),
        (b"application/grpc;a=b", True),
        (b"APPLICATION/GRPC", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/grpc-web-text", False),
        (b"application/grpcx", False),
        (b"application/grpc/x", False),
        (b"x-application/grpc", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_content_types(content_type, expected):
    assert is_grpc([(b"accept", b"application/grpc"), (b"content-type", content_type)]) is expected
    assert not is_grpc([(b"accept", content_type)])
