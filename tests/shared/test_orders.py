"""A question that one thread asks and another answers: both agree on whether somebody waited."""

from __future__ import annotations

import threading
import time

from pyramid_threaded_proxy.shared.orders import Question


def test_an_answer_in_time() -> None:
    """Who waits gets it, and who answers knows."""
    question = Question()
    threading.Timer(0.01, lambda: question.answer("yes")).start()
    assert question.wait(10) == (True, "yes")
    assert not question.given_up or question.answer("late") is False


def test_giving_up() -> None:
    """Nobody waits longer than said, and an answer that comes later is known to be of no use."""
    question, began = Question(), time.monotonic()
    assert question.wait(0.01) == (False, None)
    assert time.monotonic() - began < 1
    assert question.given_up
    assert question.answer("yes") is False


def test_both_agree_in_a_race() -> None:
    """Whether it was answered or given up in that very moment: who asked and who answered say the same."""
    for _ in range(300):
        question, heard = Question(), []
        thread = threading.Thread(target=lambda q=question, h=heard: h.append(q.answer(1)))  # type: ignore[misc]
        thread.start()
        answered, answer = question.wait(0.0)
        thread.join()
        assert heard == [answered]
        assert answer == (1 if answered else None)
