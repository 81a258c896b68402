-- The file of a replica: its records, and the changesets that it has not sent yet.

-- Named values: device, cursor, counters and so on.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- One row for each record: the shown record, and the confirmed one (the fold of the events).
CREATE TABLE records (
    collection    TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    fields        TEXT    NOT NULL DEFAULT '{}', -- shown: confirmed, with the queue on top
    is_deleted    INTEGER NOT NULL DEFAULT 0,    -- shown
    is_there      INTEGER NOT NULL DEFAULT 0,    -- shown: 1 for a live record and for a tombstone
    sync_status   INTEGER NOT NULL DEFAULT 0,    -- 0 synced, 1 waiting to be sent, 2 temporary
    last_modified TEXT,                          -- set by the server alone
    seq           INTEGER NOT NULL DEFAULT 0,
    confirmed     TEXT,                          -- the record as the fold of the events made it
    as_of         INTEGER NOT NULL DEFAULT 0,    -- a snapshot contains the events up to this seq
    is_stale      INTEGER NOT NULL DEFAULT 0,    -- 1 until the loading snapshot has the record
    PRIMARY KEY (collection, id)
) WITHOUT ROWID;

-- Changesets that the cursor has not passed yet, in the order in which they were made.
CREATE TABLE queue (
    position INTEGER PRIMARY KEY,
    id       TEXT    NOT NULL UNIQUE,
    counter  INTEGER,                -- of waiting changesets; changed by renumbering
    base     INTEGER NOT NULL,
    made_at  INTEGER NOT NULL,       -- ms since 1970, by the clock of this device
    guard    TEXT,
    ops      TEXT    NOT NULL,
    state    TEXT    NOT NULL,       -- waiting, stored, refused, rejected
    seq      INTEGER,                -- from the server's verdict
    why      TEXT                    -- of refused and rejected changesets: code, detail
);

-- The records that each queued changeset changes.
CREATE TABLE queue_records (
    collection TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    position   INTEGER NOT NULL REFERENCES queue ON DELETE CASCADE,
    PRIMARY KEY (collection, id, position)
) WITHOUT ROWID;
CREATE INDEX queue_records_by_position ON queue_records (position);

-- Acknowledged changesets, kept for 30 days for a server that is restored from a backup.
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

-- Marks at earlier cursors: the last mark that a restored server shares tells where histories part.
CREATE TABLE marks (
    seq INTEGER PRIMARY KEY,
    mark TEXT NOT NULL
);

-- Values of this device that lost a conflict, and values that lost to this device.
CREATE TABLE conflicts (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    document TEXT    NOT NULL
);
