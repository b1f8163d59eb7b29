"""The search for secrets where none may be: every form of each, in everything a node writes, answers or shows.

A `Sweep` keeps what was collected under a name that says where it was; `leaks()` lists what was found in it.
"""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

from tests.peers.gateway import Gateway


def forms(secret: bytes) -> dict[str, bytes]:
    """The ways a secret may be written, by name. Base64 at each of the three places a text may begin in it."""
    found = {
        "raw": secret,
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "URL-encoded": quote(secret, safe="").encode(),
        "URL-encoded, every byte": "".join(f"%{byte:02x}" for byte in secret).encode(),
        "reversed case": secret.swapcase(),
        "lower case": secret.lower(),
        "upper case": secret.upper(),
        "backwards": secret[::-1],
    }
    for shift in range(3):
        # Only the characters that the secret alone decides: not those it shares with what stands before or behind.
        begin, end = (8 * shift + 5) // 6, (8 * (shift + len(secret))) // 6
        found[f"base64, shifted by {shift}"] = base64.b64encode(b"\0" * shift + secret)[begin:end]
        found[f"base64url, shifted by {shift}"] = base64.urlsafe_b64encode(b"\0" * shift + secret)[begin:end]
    return found


class Sweep:
    """What was collected, and the secrets it is searched for."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {}
        self._collected: list[tuple[str, bytes]] = []

    def hide(self, what: str, secret: str | bytes) -> str:
        """A secret to search for; returns it as text."""
        text = secret.encode() if isinstance(secret, str) else secret
        assert len(text) >= 12, "a shorter one would be found by chance"
        self.secrets[what] = text
        return text.decode("latin-1")

    def collect(self, where: str, text: bytes | str) -> None:
        self._collected.append((where, text.encode() if isinstance(text, str) else text))

    def collect_files(self, where: str, folder: Path) -> None:
        """Every file under a folder. One that is gone by the time it is read held nothing that stays."""
        for path in folder.rglob("*"):
            if path.is_file():
                try:
                    self.collect(f"{where}: {path.relative_to(folder)}", path.read_bytes())
                except FileNotFoundError:
                    continue

    def collect_processes(self, where: str, running: Gateway) -> None:
        """The arguments of every process of a node, and the environment of all but the one the operator started."""
        started, *children = running.processes()
        assert children
        self.collect(f"{where}: arguments of the supervisor", Path(f"/proc/{started}/cmdline").read_bytes())
        for pid in children:
            for what in ("cmdline", "environ"):
                self.collect(f"{where}: {what} of child {pid}", Path(f"/proc/{pid}/{what}").read_bytes())

    def places(self) -> set[str]:
        """Where something was collected."""
        return {where for where, _ in self._collected}

    def leaks(self, *, but: frozenset[str] = frozenset()) -> list[str]:
        """A line for each secret found, by place and form; `but` names secrets not to be searched for."""
        return [
            f"{what}, {form}, in {where}"
            for what, secret in self.secrets.items()
            if what not in but
            for form, text in forms(secret).items()
            for where, content in self._collected
            if text in content
        ]
