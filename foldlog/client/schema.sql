-- A replica: what a device knows, and what it has not sent yet.

-- Device, cursor, counters and the like: one value a name.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- A row for every record: as it is shown, and as the events made it.
CREATE TABLE records (
    collection    TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    fields        TEXT    NOT NULL DEFAULT '{}', -- shown: confirmed and queue
    is_deleted    INTEGER NOT NULL DEFAULT 0,    -- shown
    is_there      INTEGER NOT NULL DEFAULT 0,    -- shown: it is or was a record at all
    sync_status   INTEGER NOT NULL DEFAULT 0,    -- 0 synced, 1 waiting to be sent, 2 temporary
    last_modified TEXT,                          -- by the server alone
    seq           INTEGER NOT NULL DEFAULT 0,
    confirmed     TEXT,                          -- the record as the fold of the events knows it
    as_of         INTEGER NOT NULL DEFAULT 0,    -- from a snapshot: events up to here are in it
    is_stale      INTEGER NOT NULL DEFAULT 0,    -- not seen yet in the snapshot being loaded
    PRIMARY KEY (collection, id)
) WITHOUT ROWID;

-- Changesets that the cursor has not passed yet, in the order in which they were made.
CREATE TABLE queue (
    position INTEGER PRIMARY KEY,
    id       TEXT    NOT NULL UNIQUE,
    counter  INTEGER,                -- of those that wait; given when made, again when renumbered
    base     INTEGER NOT NULL,
    made_at  INTEGER NOT NULL,       -- ms since 1970, by this device's clock
    guard    TEXT,
    ops      TEXT    NOT NULL,
    state    TEXT    NOT NULL,       -- waiting, stored, refused, rejected
    seq      INTEGER,                -- once the server has told
    why      TEXT                    -- of refused and rejected ones: code, detail
);

-- Which records each of them touches.
CREATE TABLE queue_records (
    collection TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    position   INTEGER NOT NULL REFERENCES queue ON DELETE CASCADE,
    PRIMARY KEY (collection, id, position)
) WITHOUT ROWID;
CREATE INDEX queue_records_by_position ON queue_records (position);

-- What was acknowledged, kept for a while: a server that is restored from a backup may need it.
CREATE TABLE sent (
    seq             INTEGER PRIMARY KEY,
    id              TEXT    NOT NULL UNIQUE,
    counter         INTEGER,
    base            INTEGER NOT NULL,
    made_at         INTEGER NOT NULL,
    guard           TEXT,
    ops             TEXT    NOT NULL,
    acknowledged_at INTEGER NOT NULL
);

-- Marks of the way: the last one that a restored server shares tells where histories part.
CREATE TABLE marks (
    seq INTEGER PRIMARY KEY,
    mark TEXT NOT NULL
);

-- Values of this device that lost, or that others lost to it.
CREATE TABLE conflicts (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    document TEXT    NOT NULL
);
