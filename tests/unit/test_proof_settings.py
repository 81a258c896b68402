"""The settings of proofs: all are read, and all invalid ones are named."""

from __future__ import annotations

import pytest

from foldlog.domain.notes import COSIGNATURE, Signer
from foldlog.infrastructure.settings import InvalidSettings, read_settings

WITNESS = Signer("witness.test/w", b"w" * 32).verifier(COSIGNATURE)
LOG = Signer("log.test/spaces/s/1", b"l" * 32).verifier()


def test_witnesses_and_logs():
    """Several of each, and their folders."""
    settings = read_settings(
        {
            "FOLDLOG_DATA": "/d",
            "FOLDLOG_ORIGIN": "example.com/logs",
            "FOLDLOG_WITNESSES": f"{WITNESS.vkey}@https://w.test/v1/witness/ "
            f"{WITNESS.vkey}@http://127.0.0.1:1",
            "FOLDLOG_WITNESSED": LOG.vkey,
        }
    )
    assert settings.witnesses == (
        (WITNESS, "https://w.test/v1/witness"),
        (WITNESS, "http://127.0.0.1:1"),
    )
    assert settings.witnessed == (LOG,)
    assert settings.witness_name == "example.com/logs/witness"
    assert str(settings.keys_folder) == "/d/keys"
    assert str(settings.checkpoints_folder) == "/d/checkpoints"
    assert str(read_settings({"FOLDLOG_KEYS": "/k"}).keys_folder) == "/k"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FOLDLOG_ORIGIN", "https://example.com"),
        ("FOLDLOG_ORIGIN", "a b"),
        ("FOLDLOG_WITNESSES", WITNESS.vkey),
        ("FOLDLOG_WITNESSES", f"{WITNESS.vkey}@ftp://x"),
        ("FOLDLOG_WITNESSES", f"{LOG.vkey}@https://x"),
        ("FOLDLOG_WITNESSED", LOG.vkey[:-3]),
    ],
)
def test_invalid_settings_are_named(variable, text):
    """Settings are checked at the start of the service, before the first checkpoint is signed."""
    with pytest.raises(InvalidSettings, match=variable):
        read_settings({variable: text})
