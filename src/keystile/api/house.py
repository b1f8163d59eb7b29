"""What the control process owns and every route may ask for. Built once, by `control.py`."""

from __future__ import annotations

import time

from keystile.audit.ledger import Ledger
from keystile.config import Config
from keystile.core.addresses import Reach, reach
from keystile.publish import Publisher
from keystile.store.database import Database
from keystile.vault import Vault


class House:
    """The rooms of the control process."""

    def __init__(self, config: Config, database: Database, vault: Vault, publisher: Publisher, ledger: Ledger) -> None:
        self.config = config
        self.database = database
        self.vault = vault
        self.publisher = publisher
        self.ledger = ledger
        self.reach: Reach = reach(config.upstreams_allow)

    def __repr__(self) -> str:
        return f"<House {self.config!r}>"

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000
