"""The properties of history, erasure and snapshots hold in every stored form.

In this module almost every value stays in the log, and almost every record is stored in parts.
"""

from __future__ import annotations

import pytest

from foldlog.domain import merge
from foldlog.infrastructure.postgres.master import record_cache, stored_form
from foldlog.infrastructure.postgres.rebuild import projector
from tests import oracle

from .test_history_properties import test_any_moment_of_any_log  # noqa: F401

#: in bytes, or in numbers of fields and events
TINY = {
    "LOGGED_SIZE_MIN": 5,
    "WHOLE_BYTES_MAX": 8,
    "WHOLE_FIELDS_MAX": 1,
    "PART_BYTES_MIN": 1,
    "LOGGED_EVENTS_MAX": 2,
}

# As text, because the operators of JSON refuse a row that has \u0000 in a value.
COUNT_APART = """
SELECT (SELECT count(*) FROM versions WHERE strpos(apart::text, '"parts":') > 0),
       (SELECT count(*) FROM versions WHERE strpos(apart::text, '"logged":') > 0),
       (SELECT count(*) FROM conflicts WHERE strpos(entry::text, '"rule":"too-large"') > 0)
"""


@pytest.fixture(scope="module", autouse=True)
def tiny_parts(_shared_stores):
    """The limit of a record is that of two small fields. The cache holds two records."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(stored_form, name, value)
        patch.setattr(merge, "RECORD_SIZE_MAX", 143)
        patch.setattr(oracle, "RECORD_SIZE_MAX", 143)
        patch.setattr(projector, "CACHE_BYTES", 2 * record_cache.RECORD_BYTES)
        patch.setattr(record_cache, "CACHE_BYTES", 2 * record_cache.RECORD_BYTES)
        yield
    with _shared_stores.datastore.rows() as cursor:
        cursor.execute(COUNT_APART)
        assert all(cursor.fetchone())
