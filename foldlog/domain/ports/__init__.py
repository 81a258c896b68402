"""The ports: the interfaces through which this package uses databases and other outside parts.

Each port has two implementations, one on PostgreSQL and one in memory. Both pass the same contract
tests (tests/contract). Each of the modules `event_store`, `master_table`, `registry` and
`proof_tree` defines one port.
"""

from .cursors import Page as Page
from .cursors import decode_cursor as decode_cursor
from .cursors import encode_cursor as encode_cursor
from .event_store import EventStore as EventStore
from .event_store import Progress as Progress
from .event_store import Range as Range
from .event_store import RangeQuery as RangeQuery
from .event_store import Receipt as Receipt
from .event_store import SpaceId as SpaceId
from .gauges import Gauge as Gauge
from .master_table import AsOfPage as AsOfPage
from .master_table import AsOfQuery as AsOfQuery
from .master_table import AtLeast as AtLeast
from .master_table import ConflictsPage as ConflictsPage
from .master_table import DiffPage as DiffPage
from .master_table import DiffQuery as DiffQuery
from .master_table import History as History
from .master_table import HistoryPage as HistoryPage
from .master_table import HistoryQuery as HistoryQuery
from .master_table import LocalIdsPage as LocalIdsPage
from .master_table import MasterTable as MasterTable
from .master_table import Projected as Projected
from .master_table import RecordsPage as RecordsPage
from .master_table import RecordsQuery as RecordsQuery
from .master_table import Snapshot as Snapshot
from .master_table import SnapshotCursor as SnapshotCursor
from .master_table import SnapshotPage as SnapshotPage
from .proof_tree import ConsistencyProof as ConsistencyProof
from .proof_tree import InclusionProof as InclusionProof
from .proof_tree import ProofTree as ProofTree
from .proof_tree import TreeHead as TreeHead
from .registry import GRANT_FAILED as GRANT_FAILED
from .registry import Registry as Registry
