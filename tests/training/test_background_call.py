"""A call in a thread of its own: what it gives back, what it finds there, and how it is ended."""

import threading
import time

import pytest
import torch

from rlhf.training.background_call import BackgroundCall


def test_a_call_gives_its_result_and_runs_beside():
    release = threading.Event()
    call = BackgroundCall(lambda: release.wait(30) and 7, "seven")
    release.set()
    assert call.result() == 7 and 0 <= call.seconds < 30


def test_an_error_is_raised_at_the_join_and_says_where_it_comes_from():
    call = BackgroundCall(lambda: 1 / 0, "the batch of step 5")
    with pytest.raises(ZeroDivisionError) as caught:
        call.result()
    assert caught.value.__notes__ == ["raised in the thread that was busy with: the batch of step 5"]


def test_gradients_are_off_in_the_thread_and_stay_on_outside():
    weight = torch.ones(3, requires_grad=True)
    started, release = threading.Event(), threading.Event()

    def call():
        started.set()
        release.wait(30)
        return torch.is_grad_enabled(), (2 * weight).requires_grad

    background = BackgroundCall(call, "a forward pass")
    started.wait(30)
    loss = (2 * weight).sum()
    release.set()
    loss.backward()
    assert background.result() == (False, False)
    assert weight.grad.tolist() == [2.0, 2.0, 2.0] and torch.is_grad_enabled()


def test_an_abandoned_call_ends_between_two_lines():
    lines = 0

    def decode():
        nonlocal lines
        try:
            while True:
                lines += 1
                time.sleep(0.001)
        except Exception:  # noqa: BLE001 - as engines do: it must not be caught here
            lines = -1

    call = BackgroundCall(decode, "a long generation")
    while lines < 3:
        time.sleep(0.001)
    start = time.monotonic()
    call.abandon()
    assert time.monotonic() - start < 5
    after = lines
    time.sleep(0.02)
    assert lines == after >= 3
