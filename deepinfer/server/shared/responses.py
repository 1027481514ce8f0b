"""Stored responses that every API process of a server finds, whichever of them made them.

What is kept and whose it is follows the rules of `responses_api/store.py`.
"""

from __future__ import annotations

import json
import logging
import sqlite3

from pydantic import TypeAdapter

from deepinfer.server.responses_api.items import Item
from deepinfer.server.responses_api.store import MAX_BYTES, MAX_RESPONSES, StoredResponse
from deepinfer.server.shared.ledger import Ledger

logger = logging.getLogger(__name__)

NEXT_USE = "(SELECT coalesce(max(used), 0) + 1 FROM responses)"
PUT = f"INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, {NEXT_USE})"
FIND = f"""
UPDATE responses SET used = {NEXT_USE} WHERE id = ? AND owner = ?
RETURNING rendered, input, output
"""
FIND_OUTPUT = """
SELECT id FROM responses WHERE owner = ? AND instr(output, ?) ORDER BY used DESC LIMIT 1
"""
DROP_OLDEST = """
DELETE FROM responses WHERE id = (SELECT id FROM responses ORDER BY used LIMIT 1)
"""


class SharedResponses:
    def __init__(
        self,
        ledger: Ledger,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._ledger = ledger
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._items: TypeAdapter[tuple[Item, ...]] = TypeAdapter(tuple[Item, ...])

    def __len__(self) -> int:
        return self._sizes()[0]

    def put(self, response: StoredResponse) -> None:
        """Keep it, and drop as many others as that takes. A full disk keeps nothing."""
        try:
            with self._ledger.transaction():
                self._insert(response)
                self._make_room()
        except sqlite3.OperationalError as error:
            logger.error("response `%s` is not stored: %s", response.id, error)

    def find(self, id_: str, owner: bytes) -> StoredResponse | None:
        """The response, which now counts as used, if it is there and `owner` made it."""
        rows = self._ledger.run(FIND, (id_, owner))
        if not rows:
            return None
        rendered, input_, output = rows[0]
        read = self._items.validate_json
        return StoredResponse(id_, owner, rendered, read(input_), read(output))

    def find_output(self, item_id: str, owner: bytes) -> Item | None:
        """The item of that id in the output of a response, which now counts as used."""
        rows = self._ledger.run(FIND_OUTPUT, (owner, json.dumps(item_id).encode()))
        response = self.find(rows[0][0], owner) if rows else None
        output = () if response is None else response.output
        return next((item for item in output if item.id == item_id), None)

    def delete(self, id_: str) -> None:
        """Drop a response that was found; another process may have done it meanwhile."""
        self._ledger.run("DELETE FROM responses WHERE id = ?", (id_,))

    def _insert(self, response: StoredResponse) -> None:
        write = self._items.dump_json
        texts = (response.rendered, write(response.input), write(response.output))
        self._ledger.run(PUT, (response.id, response.owner, *texts, response.size_bytes))

    def _make_room(self) -> None:
        count, size_bytes = self._sizes()
        while count > self._max_responses or size_bytes > self._max_bytes:
            self._ledger.run(DROP_OLDEST)
            count, size_bytes = self._sizes()

    def _sizes(self) -> tuple[int, int]:
        rows = self._ledger.run("SELECT count(*), coalesce(sum(size_bytes), 0) FROM responses")
        return rows[0][0], rows[0][1]
