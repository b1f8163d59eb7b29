"""`make bench` measures every contender and counts what it asked for; no figure is asserted."""

from __future__ import annotations

import json

import pytest

from bench import load, run
from bench.contenders import CONTENDERS


@pytest.mark.xdist_group("bench")
def test_a_small_run_measures_every_contender(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--rounds", "2", "--requests", "640", "--json"])
    found = json.loads(capsys.readouterr().out)
    names = {contender.name for contender in CONTENDERS}
    assert found["rounds"].keys() == found["median"].keys() == names
    assert found["ratio"].keys() == names - {"keystile"}
    assert all(one["per_second"] > 0 for one in found["median"].values())


def test_the_measured_request_has_the_size_it_is_named_by() -> None:
    assert len(load.BODY) == 106
    assert json.loads(load.BODY)["method"] == "tools/call"


def test_medians_and_quotients_are_shown_a_contender_a_line() -> None:
    one, other = run.Round(40, 60, 12_000, 5_000, 9_000), run.Round(10, 10, 48_000, 1_000, 3_000)
    result = run.Result(64, 10, {"keystile": [one], "nginx": [other]}, {"keystile": one, "nginx": other}, {})
    lines = run.table(result).splitlines()
    assert lines[-2].split() == ["keystile", "40.0", "60.0", "12,000", "5.00", "9.00"]
    assert lines[-1].split() == ["nginx", "10.0", "10.0", "48,000", "1.00", "3.00"]
