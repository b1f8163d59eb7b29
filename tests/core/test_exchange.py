from __future__ import annotations

import pytest

from keystile.core.exchange import ENDED, TABLE, State, Step, after, printed

LIVE = [state for state in State if state not in ENDED]


def test_the_states_that_ended_are_the_outcomes_of_an_event() -> None:
    assert {state.value for state in ENDED} == {"done", "refused", "upstream_failed", "client_left"}


@pytest.mark.parametrize("state", LIVE)
def test_a_client_may_leave_at_any_time(state: State) -> None:
    assert after(state, Step.LEAVE) is State.CLIENT_LEFT


@pytest.mark.parametrize("state", LIVE)
def test_a_withdrawn_key_or_connection_ends_an_exchange_at_any_time(state: State) -> None:
    assert after(state, Step.REFUSE) is State.REFUSED


@pytest.mark.parametrize("state", [State.DIALLING, State.WAITING, State.ANSWERING])
def test_an_upstream_may_fail_from_the_dial_on(state: State) -> None:
    assert after(state, Step.FAIL) is State.UPSTREAM_FAILED


def test_what_has_ended_stays_so() -> None:
    assert not [state for state, _ in TABLE if state in ENDED]
    with pytest.raises(KeyError):
        after(State.DONE, Step.LEAVE)


@pytest.mark.parametrize("state", LIVE)
def test_every_end_can_be_reached_from_every_live_state(state: State) -> None:
    reached, seen = {state}, set()
    while reached - seen:
        seen |= reached
        reached |= {end for (start, _), end in TABLE.items() if start in seen}
    assert reached >= ENDED


def test_an_exchange_only_moves_on() -> None:
    order = list(State)
    assert all(order.index(end) > order.index(start) for (start, _), end in TABLE.items())


def test_nothing_is_answered_that_was_not_sent_and_nothing_done_that_was_not_answered() -> None:
    assert [start for (start, _), end in TABLE.items() if end is State.ANSWERING] == [State.WAITING]
    assert [start for (start, _), end in TABLE.items() if end is State.DONE] == [State.ANSWERING]


def test_every_step_and_state_is_used() -> None:
    assert {step for _, step in TABLE} == set(Step)
    assert {state for state, _ in TABLE} | set(TABLE.values()) == set(State)


def test_the_table_prints_itself_one_transition_a_line() -> None:
    lines = printed().splitlines()
    assert len(lines) == len(TABLE)
    assert lines[0].split() == ["reading", "dial", "→", "dialling"]
