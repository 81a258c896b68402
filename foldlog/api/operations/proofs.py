"""Defines the operations that prove the content of the log: checkpoints, tiles of the Merkle tree,
and proofs of single events.

Checkpoints, tiles and bundles of leaves have the formats and paths of C2SP tlog-tiles. Each path
begins with the URL of the space. From the tiles, a client can compute every proof itself. The
operations for single proofs exist because a client needs fewer requests with them.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from flask import Blueprint

from foldlog.api.http.problems import InternalError, NoSuchPath, document_of
from foldlog.api.http.rates import DOWNLOADS, Lease
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import Lines, operation
from foldlog.api.shapes import examples
from foldlog.api.shapes.answers import (
    ConsistencyProof,
    EventProof,
    ExportHeader,
    ExportLine,
    ExportProblem,
    InclusionProof,
    Keys,
)
from foldlog.api.shapes.queries import ExportQuery, InclusionQuery, SizeQuery, consistency_query
from foldlog.domain.access import Right
from foldlog.domain.errors import (
    BeyondTree,
    FoldlogError,
    LogIncomplete,
    NoCheckpoint,
    NoKeys,
    StorageUnavailable,
)
from foldlog.domain.events import LogEntry
from foldlog.domain.merkle import HASH_BYTES, TILE_WIDTH, Tile
from foldlog.domain.notes import Verifier, bundle, parse_level, parse_tile_path
from foldlog.domain.ports import EventStore, ProofTree, RangeQuery
from foldlog.domain.proofs import leaf_hash

from .problems import READ_PROBLEMS

log = structlog.get_logger("foldlog.api")

OCTETS = "application/octet-stream"
NOTE = "text/plain; charset=utf-8"
#: A full tile is final. It is `private`, because it reveals the devices and times of changes.
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Authorization"}
FRESH = {"Cache-Control": "private, no-cache"}


NDJSON = "application/x-ndjson"
EXPORT = Lines(
    "JSON lines: a header, and a line for each event with its salt.",
    {
        "header": (ExportHeader, examples.EXPORT_HEADER),
        "event": (ExportLine, examples.EXPORT_LINE),
        "problem": (ExportProblem, examples.EXPORT_PROBLEM),
    },
)
PIECE_BYTES = 2**20
#: A running export retries failed reads, because its status 200 has already been sent.
TRIES_MAX, TRY_AGAIN_SECONDS = 10, 1.0


def proofs_blueprint(
    store: EventStore, tree: ProofTree, verifiers: Callable[[str], Sequence[Verifier]]
) -> Blueprint:
    bp = Blueprint("proofs", __name__)

    @bp.get("/v1/spaces/<space>/checkpoint")
    @operation(Right.READ, media_type=NOTE, problems=(*READ_PROBLEMS, NoCheckpoint))
    def checkpoint(space: str) -> Reply:
        """Read the latest signed checkpoint.

        A checkpoint is a signed note (C2SP tlog-checkpoint). It contains the origin of the log, the
        size and the root hash of the Merkle tree, and the signatures of the log and of its
        witnesses.
        """
        return Reply(tree.checkpoint(space), NOTE, headers=dict(FRESH))

    @bp.get("/v1/spaces/<space>/keys")
    @operation(Right.READ, answer=Keys, example=examples.KEYS, problems=(*READ_PROBLEMS, NoKeys))
    def keys(space: str) -> Reply:
        """List the public keys that have signed checkpoints of this log.

        Each key is a verifier key (vkey) of C2SP signed-note. The first key in the list is the one
        that signs new checkpoints. An auditor should get the keys from another source, because a
        dishonest service could list other keys here.
        """
        head = tree.tree(space)
        found = [verifier.vkey for verifier in verifiers(space)]
        if not found:
            raise NoKeys
        return json_reply(Keys(head.log, found))

    @bp.get("/v1/spaces/<space>/tile/<digits:level>/<path:tile>")
    @operation(Right.READ, media_type=OCTETS, problems=(*READ_PROBLEMS, NoSuchPath, BeyondTree))
    def tile(space: str, level: str, tile: str) -> Reply:
        """Read a tile of the Merkle tree.

        A full tile has 256 hashes of 32 bytes. If the path ends with `.p/<W>`, the response is a
        partial tile with W hashes (C2SP tlog-tiles). If the tree does not have that many hashes
        yet, the status is 404.
        """
        number = parse_level(level)
        if number is None:
            raise NoSuchPath(f"there is no level {level!r}")
        found, width = _tile_and_width(number, tile, tree.tree(space).size)
        hashes = tree.tiles(space, [found]).get(found, b"")
        return _octets(hashes[: width * HASH_BYTES])

    @bp.get("/v1/spaces/<space>/tile/entries/<path:tile>")
    @operation(
        Right.READ,
        media_type=OCTETS,
        problems=(*READ_PROBLEMS, NoSuchPath, BeyondTree, LogIncomplete),
    )
    def entries(space: str, tile: str) -> Reply:
        """Read a bundle of leaves of the Merkle tree.

        The bundle has the leaves whose hashes are in the level-0 tile with the same number. In the
        response, two bytes with the length of the leaf come before each leaf (C2SP tlog-tiles). A
        leaf contains an event, with a hash in place of its operations, so the values of records
        stay secret.
        """
        found, width = _tile_and_width(0, tile, tree.tree(space).size)
        first = found.number * TILE_WIDTH
        leaves = store.entries(space, after=first, through=first + width)
        return _octets(bundle(entry.leaf for entry in leaves))

    @bp.get("/v1/spaces/<space>/export")
    @operation(
        Right.AUDIT,
        query=ExportQuery(),
        answer=EXPORT,
        media_type=NDJSON,
        problems=(*READ_PROBLEMS, LogIncomplete),
    )
    async def export(request: Request, space: str, query: Mapping[str, Any]) -> Reply:
        """Export the log with the salts of its events.

        The response has the format of the command `foldlog export`: a header line, and then one
        line for each event. The header has a member `head`, which is the seq of the event in the
        last line. The values of an event can be verified only with the salt of the event. With an
        export, an auditor can therefore recompute every hash of the log, while the service
        continues to run.

        If a read fails after the response has begun, the last line is `{"problem": ...}` with a
        problem document, and the connection ends before the end of the response.
        """
        lease = request.hold(DOWNLOADS)
        with lease.unless_it_fails():
            page = await request.run(store.range_after, space, RangeQuery(0, 1))
        header = ExportHeader("export", 1, space, page.log, page.head)
        return Reply(_lines(store, header, query["after"], lease), NDJSON)

    @bp.get("/v1/spaces/<space>/proof/inclusion")
    @operation(
        Right.READ,
        query=InclusionQuery(),
        answer=InclusionProof,
        example=examples.INCLUSION_PROOF,
        problems=(*READ_PROBLEMS, BeyondTree),
    )
    def inclusion(space: str, query: Mapping[str, Any]) -> Reply:
        """Prove that an event is in the Merkle tree.

        The proof is a list of hashes in base64, in the order from the leaf to the root (RFC 9162
        section 2.1.3). The event with seq N is the leaf with index N - 1.
        """
        found = tree.inclusion(space, query["seq"], query.get("size"))
        return json_reply(
            InclusionProof(
                found.log,
                found.seq,
                found.size,
                _base64(found.root),
                list(map(_base64, found.path)),
            )
        )

    @bp.get("/v1/spaces/<space>/proof/consistency")
    @operation(
        Right.READ,
        query=consistency_query(),
        answer=ConsistencyProof,
        example=examples.CONSISTENCY_PROOF,
        problems=(*READ_PROBLEMS, BeyondTree),
    )
    def consistency(space: str, query: Mapping[str, Any]) -> Reply:
        """Prove that an older tree is the beginning of a newer tree.

        The proof shows that between the two sizes of the tree, events were only appended to the
        log. The proof is a list of hashes in base64 (RFC 9162 section 2.1.4).
        """
        found = tree.consistency(space, query["from"], query.get("to"))
        return json_reply(
            ConsistencyProof(
                found.log,
                found.old,
                found.new,
                _base64(found.old_root),
                _base64(found.new_root),
                list(map(_base64, found.path)),
            )
        )

    @bp.get("/v1/spaces/<space>/proof/event/<seq>")
    @operation(
        Right.READ,
        query=SizeQuery(),
        answer=EventProof,
        example=examples.EVENT_PROOF,
        problems=(*READ_PROBLEMS, BeyondTree, LogIncomplete),
    )
    def event(space: str, seq: str, query: Mapping[str, Any]) -> Reply:
        """Prove an event, including all its values.

        The response has the event, its salt, and the proof that the leaf of the event is in the
        Merkle tree. The salt is needed to verify the operations of the event. The caller needs the
        right to read events, because the response contains all values of the event.
        """
        found = tree.inclusion(space, int(seq), query.get("size"))
        (entry,) = store.entries(space, after=found.seq - 1, through=found.seq)
        return json_reply(
            EventProof(
                found.log,
                found.seq,
                found.size,
                _base64(found.root),
                list(map(_base64, found.path)),
                leaf_hash=_base64(leaf_hash(entry.leaf)),
                ops_hash=entry.ops_hash.hex(),
                salt=entry.salt.hex(),
                event=msgspec.Raw(entry.state),
            )
        )

    return bp


def _lines(store: EventStore, header: ExportHeader, after: int, lease: Lease) -> Iterator[bytes]:
    with lease:
        yield msgspec.json.encode(header) + b"\n"
        piece = bytearray()
        try:
            for entry in _entries(store, header.space, after, header.head):
                line = ExportLine(entry.salt.hex(), msgspec.Raw(entry.state))
                piece += msgspec.json.encode(line) + b"\n"
                if len(piece) >= PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
            if piece:
                yield bytes(piece)
        except Exception as exc:
            # The status 200 was sent already. The last line tells a reader what has happened, and
            # the server breaks the response off, so that no client takes it for a whole export.
            log.error("export-cut", space=header.space, exc_info=exc)
            known = exc if isinstance(exc, FoldlogError) else InternalError()
            problem = msgspec.json.encode({"problem": document_of(known)})
            yield bytes(piece) + problem + b"\n"
            raise


def _entries(store: EventStore, space: str, after: int, through: int) -> Iterator[LogEntry]:
    tries = 0
    while after < through:
        try:
            for entry in store.entries(space, after=after, through=through):
                yield entry
                after, tries = entry.seq, 0
            return
        except StorageUnavailable:
            tries += 1
            if tries == TRIES_MAX:
                raise
            time.sleep(TRY_AGAIN_SECONDS)


def _tile_and_width(level: int, path: str, size: int) -> tuple[Tile, int]:
    """Parses the path of a tile. Returns the tile and the number of hashes that the path asks for.

    Raises `NoSuchPath` if the path is invalid. Raises `BeyondTree` if, in a tree of `size` leaves,
    the tile has fewer hashes than the path asks for.
    """
    parsed = parse_tile_path(path)
    if parsed is None:
        raise NoSuchPath(f"{path!r} is not the path of a tile")
    number, partial_width = parsed
    tile, width = Tile(level, number), partial_width or TILE_WIDTH
    if width > tile.width(size):
        raise BeyondTree(f"the tree has {size} events", size=size)
    return tile, width


def _octets(body: bytes) -> Reply:
    return Reply(body, OCTETS, headers=dict(IMMUTABLE))


def _base64(hash: bytes) -> str:
    return b64encode(hash).decode()
