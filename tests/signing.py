"""A space `s` with signed checkpoints, for tests of what a signature covers."""

from __future__ import annotations

from pathlib import Path

from foldlog.infrastructure.signing.keys import read_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner

ORIGIN = "foldlog.local"


class SignedSpace:
    """Signs the log of the space `s`. `folder` has the keys and the last checkpoints."""

    def __init__(self, stores, folder: Path):
        self.stores, self.folder = stores, folder

    def sign(self) -> None:
        """Projects all events, and signs them."""
        self.stores.project()
        self.stores.grow_trees()
        CheckpointSigner(
            self.stores.proofs,
            keys=self.folder / "keys",
            last=self.folder / "checkpoints",
            origin=ORIGIN,
        ).sign_all()

    @property
    def vkey(self) -> str:
        log = self.stores.proofs.tree("s").log
        return read_keys(self.folder / "keys").verifiers(f"{ORIGIN}/spaces/s/{log}")[0].vkey
