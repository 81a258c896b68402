"""Stores marks in the replica's file. A mark is the server's hash of the log up to a seq. The
replica stores the mark at each of its earlier cursors.

If the server is restored from an older backup, the last events of the log are lost. The replica
then finds the newest stored mark that the server's log also has. Up to the seq of this mark, the
replica and the server have the same events.
"""

from __future__ import annotations

from .database import Database

#: the newest marks are all kept; of the older ones, fewer and fewer
MARKS_DENSE = 100


class Marks:
    """Reads and writes the table of marks in the replica's file. Each row has a seq and the mark at
    this seq.
    """

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
        """Returns a list of pairs (seq, mark) of all stored marks, ordered by seq."""
        return self._database.connection.execute(
            "SELECT seq, mark FROM marks ORDER BY seq"
        ).fetchall()

    def delete_after(self, seq: int) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM marks WHERE seq > ?", (seq,))

    def thin_out(self) -> None:
        """Deletes most of the older marks if more than 200 marks are stored.

        The newest 100 marks stay. The older marks are grouped by their distance from the newest
        mark: group k has the distances from 2^k to 2^(k+1) events. In each group, only the oldest
        mark stays.
        """
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
