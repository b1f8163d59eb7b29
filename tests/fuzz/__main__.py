"""Coverage-guided fuzzing: mutate what has reached new lines, for as long as is asked.

    python -m tests.fuzz [--seconds 60] [--seed N] [target ...]

No fuzzing engine is needed: the readers are small, and the interpreter's own trace function tells which steps from
line to line an input took. Inputs that took a new one join the corpus. The first input that breaks a promise is
printed, with the seed, and the exit status is 1.
"""

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import keystile.core
from tests.fuzz.targets import TARGETS, Target

_WATCHED = str(Path(keystile.core.__file__).parent)
_LONGEST = 4096


def steps(check: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """The steps from line to line that `check` took inside keystile.core."""
    taken: set[tuple[str, int, int]] = set()
    last = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal last
        if not frame.f_code.co_filename.startswith(_WATCHED):
            return None
        if event == "line":
            taken.add((frame.f_code.co_filename, last, frame.f_lineno))
        last = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return taken


def mutation(rng: random.Random, corpus: list[bytes]) -> bytes:
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 1, 2, 8, 40)))
        other = rng.choice(corpus)
        cut = rng.randrange(len(other) + 1)
        data[start:end] = rng.choice(
            (
                b"",
                bytes((rng.randrange(256),)),
                rng.choice(
                    (b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b",", b'"', b"\\", b"{", b"}", b"0", b"\xff")
                ),
                bytes(data[start:end]) * 2,
                bytes(data[start:end]).swapcase(),
                other[cut : cut + rng.choice((1, 4, 16, 64))],
            )
        )
    return bytes(data[:_LONGEST])


def fuzz(name: str, target: Target, seconds: float, seed: int) -> bool:
    """Whether the target held."""
    rng = random.Random(seed)  # noqa: S311 - a run must be repeatable
    corpus, reached = list(target.seeds), set[tuple[str, int, int]]()
    began = time.monotonic()
    runs = 0
    while runs < len(target.seeds) or time.monotonic() - began < seconds:
        data = corpus[runs] if runs < len(target.seeds) else mutation(rng, corpus)
        runs += 1
        try:
            taken = steps(target.check, data)
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            traceback.print_exc()
            print(f"{name}: broken after {runs} runs, seed {seed}, by:\n{data!r}")  # noqa: T201 - a command's output
            return False
        if not taken <= reached:
            reached |= taken
            corpus.append(data)
    print(f"{name}: held, {runs} runs, {len(reached)} steps, {len(corpus)} inputs kept, seed {seed}")  # noqa: T201 - as above
    return True


def main() -> int:
    """Fuzz each target asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all of them by default")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    asked = parser.parse_args()
    held = [fuzz(name, TARGETS[name], asked.seconds, asked.seed) for name in asked.targets or TARGETS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
