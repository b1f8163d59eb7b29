from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SPEAKER = """
import sys
from keystile.gateway import notice
for number in range(3):
    notice.say("warning", "something", number=number)
    sys.stdout.write("went on\\n")
    sys.stdout.flush()
"""


def test_a_line_that_cannot_be_written_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        seen = subprocess.run(
            [sys.executable, "-c", _SPEAKER], stdout=subprocess.PIPE, stderr=full, check=False, text=True
        )
    assert seen.stdout.splitlines() == ["went on"] * 3
