"""Marks: hashes of the server's log at earlier cursors.

A server that was restored from a backup has a shorter log. The last mark that both share tells
where the two histories part.
"""

from __future__ import annotations

from .database import Database

#: the newest marks are all kept; of the older ones, fewer and fewer
MARKS_DENSE = 100


class Marks:
    """The marks that this replica has seen, by seq."""

    def __init__(self, database: Database):
        self._database = database

    def add(self, seq: int, mark: str) -> None:
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO marks (seq, mark) VALUES (?, ?)", (seq, mark))

    def at(self, seq: int) -> str | None:
        row = self._database.connection.execute(
            "SELECT mark FROM marks WHERE seq = ?", (seq,)
        ).fetchone()
        return None if row is None else str(row[0])

    def all(self) -> list[tuple[int, str]]:
        """Returns (seq, mark) of each mark, oldest first."""
        return self._database.connection.execute(
            "SELECT seq, mark FROM marks ORDER BY seq"
        ).fetchall()

    def delete_after(self, seq: int) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM marks WHERE seq > ?", (seq,))

    def thin_out(self) -> None:
        """Deletes old marks: one stays for each distance between 2^k and 2^(k+1) events."""
        with self._database.transaction() as db:
            seqs = [seq for (seq,) in db.execute("SELECT seq FROM marks ORDER BY seq").fetchall()]
            if len(seqs) <= 2 * MARKS_DENSE:
                return
            distances = set()
            # The oldest of each range stays, because a younger one would be deleted before it
            # reaches the next range.
            for seq in seqs[:-MARKS_DENSE]:
                distance = (seqs[-1] - seq).bit_length()
                if distance in distances:
                    db.execute("DELETE FROM marks WHERE seq = ?", (seq,))
                distances.add(distance)
