from sidestep.aio.token_bucket import TokenBucket, TokenBuckets


def test_a_burst_then_a_rate():
    bucket = TokenBucket(rate=2, burst=3, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait() == 0.5
    assert bucket.take(10.5)
    assert not bucket.take(10.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.0), "a clock that goes back gives nothing"


def test_each_key_has_its_own_and_few_are_remembered():
    buckets = TokenBuckets(rate=1, burst=1, size=2)
    assert buckets.take("a", 0.0)
    assert not buckets.take("a", 0.0)
    assert buckets.take("b", 0.0)
    assert buckets.take("c", 0.0)
    assert not buckets.take("b", 0.0)
    assert buckets.take("a", 0.0), "forgotten for others"
