// The sync loop of docs/reference/protocol.md in JavaScript: a sketch to start a client of your own from.
// `db` is your local database; everything inside `db.transaction` must be one transaction there.
// `fold(event)` applies an event to your local records by the rules of docs/explanation/merge.md. `erase(key,
// write)` makes a record a tombstone with that write, and forgets its values wherever you keep them:
// what waits in the queue stays there, with `delete` in the place of its operations on the record.

export async function sync(db, url, space, fetch = globalThis.fetch) {
  for (;;) {
    const { device, after, mark } = await db.cursor();          // { device, after: 0, mark: "" } at first
    const waiting = await db.queue("waiting", 200);             // oldest first
    const response = await fetch(`${url}/v1/spaces/${space}/sync`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        device, sent_at: new Date().toISOString(), after, mark, limit: 500,
        changesets: waiting.map(({ id, counter, base, made_at, ops }) =>
          ({ id, counter, base, made_at, ops })),
      }),
    });
    const answer = await response.json();
    if (!response.ok) {
      if (await heal(db, answer, waiting)) continue;
      throw Object.assign(new Error(answer.detail), answer);    // try again later; the queue is kept
    }
    await db.transaction(async () => {
      for (const event of answer.events) {
        if (event.kind === "record-erased")
          await db.erase(event.body, [event.seq, null, Date.parse(event.received_at), 0]);
        if (event.kind !== "changeset") continue;               // skip the kinds you do not know
        const own = await db.find(event.id);                    // also one left to its old device id
        if (own) event.ops ??= own.ops;                         // own changesets come without them
        event.ops = event.ops.filter((op, n) => !op.erased && !event.erased?.includes(n));
        if (event.verdict === "stored") await db.fold(event);
        if (own && event.verdict === "stored") await db.leave(event.id, event.seq);
      }
      for (const verdict of answer.verdicts) {                  // of those that did not come back yet
        if (!(await db.find(verdict.id))) continue;
        if (verdict.verdict === "refused") await db.refuse(verdict.id, verdict.refusal);
        else if (verdict.seq <= answer.through) await db.leave(verdict.id, verdict.seq);
        else await db.acknowledge(verdict.id, verdict.seq);     // leaves when it comes back
      }
      await db.moveCursor(answer.through, answer.mark);
    });
    if (!answer.more && (await db.queue("waiting", 1)).length === 0) return;
  }
}

async function heal(db, problem, waiting) {
  switch (problem.code) {
    case "invalid-changeset":                                   // set it aside, where the user sees it
    case "limit-exceeded":
    case "id-reused":
      if (problem.index === undefined) return false;            // 413: send fewer at once
      await db.setAside(waiting[problem.index].id, problem);    // and renumber what follows
      return true;
    case "counter-gap":
      await db.renumber(problem.index, problem.expected);
      return true;
    case "device-forked":                                       // restored or cloned
      await db.newDevice(crypto.randomUUID());                  // counters from 1; ids stay
      return true;
    default:                                                    // log-behind, log-changed: see the page
      return false;
  }
}
