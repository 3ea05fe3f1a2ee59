"""Requests to stop: remembered once, and told to whoever waits outside."""

import os
import signal

import pytest

from b2b_jax.train.signals import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_within_another_tells_both(number, code):
    before = signal.getsignal(number)
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), number)
            assert (inner.exit_code, outer.exit_code) == (code, code)
        assert signal.getsignal(number) == before  # a second one acts as usual
    assert signal.getsignal(number) == before


def test_a_request_between_two_runs_reaches_the_outer_one():
    with StopRequest() as outer:
        with StopRequest() as inner:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert (inner.exit_code, outer.exit_code) == (0, 75)
