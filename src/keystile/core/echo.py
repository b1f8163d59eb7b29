"""A credential that comes back is masked: replaced by asterisks of the same length, across chunk borders too.

Only a tail that could begin a match is held back, so nothing else of an answer waits. Credentials shorter than
`SHORTEST` are not looked for: they would match by chance, and masking would then corrupt answers.
"""

from __future__ import annotations

SHORTEST = 12


class Echo:
    """Looks for one credential in one answer. `found` says whether it was there."""

    __slots__ = ("_credential", "_first", "_held", "_whole", "found")

    def __init__(self, credential: bytes) -> None:
        self._credential = credential
        self._first = credential[:1]
        self._whole = self._folded(credential)
        self._held = b""
        self.found = False

    def __repr__(self) -> str:
        return f"<Echo found={self.found} held={len(self._held)}>"

    @property
    def holds(self) -> bool:
        """Whether bytes are being held back."""
        return bool(self._held)

    def masked(self, text: bytes) -> bytes:
        """A whole text (a head), masked."""
        if self._credential in text:
            self.found = True
            return text.replace(self._credential, b"*" * len(self._credential))
        return text

    def masked_lines(self, lines: list[bytes]) -> list[bytes]:
        """A head's field lines, masked.

        Reading a head changed the case of names and the space behind their colons, so a line that held the credential
        before that is left out.
        """
        whole = self._folded(b"\r\n".join(lines))
        if self._whole not in whole:
            return lines
        self.found = True
        masked = [self.masked(line) for line in lines]
        return [line for line in masked if self._whole not in self._folded(line)]

    @staticmethod
    def _folded(text: bytes) -> bytes:
        return text.lower().replace(b": ", b":")

    def feed(self, data: bytes) -> bytes:
        """The bytes that may leave now."""
        text = self._held + data if self._held else data
        clear, text = self._parted(text) if self._credential in text else (b"", text)
        keep = self._tail(text)
        if not keep and not clear:
            self._held = b""
            return text
        self._held = text[len(text) - keep :]
        return clear + text[: len(text) - keep]

    def flush(self) -> bytes:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, b""
        return held

    def _parted(self, text: bytes) -> tuple[bytes, bytes]:
        """The text up to the end of the last match, masked, and the rest: asterisks of ours begin no match."""
        self.found = True
        *before, rest = text.split(self._credential)
        return (b"*" * len(self._credential)).join([*before, b""]), rest

    def _tail(self, text: bytes) -> int:
        """Length of the longest end of `text` that begins the credential."""
        start = text.find(self._first, max(0, len(text) - len(self._credential) + 1))
        while start != -1:
            if self._credential.startswith(text[start:]):
                return len(text) - start
            start = text.find(self._first, start + 1)
        return 0


def echo_of(credential: bytes | None) -> Echo | None:
    """A detector, when there is something to look for."""
    return Echo(credential) if credential is not None and len(credential) >= SHORTEST else None
