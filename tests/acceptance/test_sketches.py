"""The sketch of a client in JavaScript, run for real against the service."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.domain.collections import Proposal
from foldlog.domain.json_schema import JsonSchema
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import B, changeset, push_of, put

from .live import served

TOKEN = "an admin's token for the tests"
SKETCH = Path(__file__).parents[2] / "docs" / "reference" / "sketches" / "sync.mjs"

#: The smallest local database that the sketch can work with: in memory, and a fold of last writes.
DRIVER = """
import { sync } from "%(sketch)s";
const state = { device: crypto.randomUUID(), after: 0, mark: "", counter: 0 };
const queue = [], records = {}, aside = [], erased = [];
const db = {
  cursor: async () => state,
  queue: async (wanted, limit) => queue.filter((c) => c.state === wanted).slice(0, limit),
  find: async (id) => queue.find((c) => c.id === id),
  transaction: async (work) => work(),
  acknowledge: async (id) => { (await db.find(id)).state = "stored"; },
  refuse: async (id, refusal) => {
    aside.push(refusal.code);
    (await db.find(id)).state = "refused";
  },
  leave: async (id) => {
    const at = queue.findIndex((c) => c.id === id);
    if (at >= 0) queue.splice(at, 1);
  },
  fold: async (event) => {
    for (const op of event.ops) records[op.id] = { ...records[op.id], ...op.fields };
  },
  moveCursor: async (after, mark) => Object.assign(state, { after, mark }),
  setAside: async (id, problem) => {
    aside.push(problem.code);
    await db.leave(id);
    await db.renumber(0, 1);
  },
  renumber: async (from, expected) => {
    const waiting = queue.filter((c) => c.state === "waiting").slice(from);
    waiting.forEach((c, n) => { c.counter = expected + n; });
  },
  erase: async ({ collection, id }, [seq, device, time, other]) => {
    records[id] = {};
    erased.push([collection, id, device, other, seq > 0 && time > 0]);
    for (const c of queue)
      c.ops = c.ops.map((op) => (op.id === id ? { op: "delete", collection, id } : op));
  },
  newDevice: async (device) => { state.device = device; await db.renumber(0, 1); },
};
const make = (fields, ...ids) => queue.push({
  id: crypto.randomUUID(), counter: ++state.counter, base: state.after, state: "waiting",
  made_at: new Date().toISOString(),
  ops: [...ids, crypto.randomUUID()].map((id) => ({ op: "put", collection: "tasks", id, fields })),
});
make({ n: 1 }); make({ n: 2 ** 60 }); make({ n: 3 });
await sync(db, "%(url)s", "home");
state.counter = 1; make({ n: 4 });   // as after a restore: an old counter
await sync(db, "%(url)s", "home");
make({ n: 5 }, "theirs");            // and then the record is erased, before this is sent
await fetch("%(url)s/v1/admin/spaces/home/erase", {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: "Bearer %(token)s" },
  body: JSON.stringify({ records: [{ collection: "tasks", id: "theirs" }], reason: "asked to" }),
});
await sync(db, "%(url)s", "home");
console.log(JSON.stringify({
  queue: queue.length, aside, erased,
  values: Object.values(records).map((r) => r.n ?? null).sort(),
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_javascript_sketch_syncs_and_heals(tmp_path):
    """
    It pushes, pulls what others made, sets aside what cannot be read, heals a fork, skips kinds
    that it does not know, and erases.
    """
    store = MemoryStore()
    store.push("home", push_of(changeset(put("theirs", n=0)), device=B))
    store.define("home", "notes", Proposal(JsonSchema({})), seconds_max=None)
    app = create_app(store=store, master=store, ready=dict, access=OpenAccess(TOKEN))
    driver = tmp_path / "driver.mjs"
    with served(store, app=app) as here:
        names = {"sketch": SKETCH.as_posix(), "url": here.url, "token": TOKEN}
        driver.write_text(DRIVER % names)
        done = subprocess.run(["node", driver], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "queue": 0,
        "aside": ["limit-exceeded"],
        "erased": [["tasks", "theirs", None, 0, True]],
        "values": [1, 3, 4, 5, None],
    }
