-- The schema of Foldlog, as a new database gets it. `migrations/` leads older ones to the same.
--
-- Every key begins with the space, because a space is what is locked, ordered, shared and, one
-- day, sharded by. No constraint, join or sequence spans spaces. Names compare byte by byte
-- (COLLATE "C"), so that pages have one order on every server. Times that the service computes
-- with are ms since 1970.

-- One row a space. Appending takes this row FOR UPDATE, so seq order is commit order.
CREATE TABLE spaces (
    space           text   COLLATE "C" PRIMARY KEY,
    log             uuid   NOT NULL DEFAULT gen_random_uuid(), -- changes only when history forked
    head            bigint NOT NULL DEFAULT 0,                 -- seq of the last event
    mark            text   NOT NULL DEFAULT '',                -- its mark
    received_at_ms  bigint NOT NULL DEFAULT 0,                 -- its time; never goes back
    event_bytes_max bigint NOT NULL DEFAULT 0                  -- the largest `state` so far
);

-- The log: the aggregate stream of the eventsourcing library (its four columns, its key), and
-- beside them what the service looks up by. `state` is the event's JSON as readers receive it.
CREATE TABLE events (
    originator_id      text   COLLATE "C" NOT NULL,  -- the space
    originator_version bigint NOT NULL,              -- the seq: 1, 2, 3 ... with no hole
    topic              text   NOT NULL,              -- kind and version of the stored form
    state              bytea  NOT NULL,
    event_id           uuid   NOT NULL,              -- a changeset's id: the idempotency key
    device             uuid,
    received_at_ms     bigint NOT NULL,
    collections        text[],                       -- that a changeset touches
    salt               bytea  NOT NULL,              -- of the commitments to its operations
    ops_hash           bytea  NOT NULL,
    PRIMARY KEY (originator_id, originator_version),
    CONSTRAINT events_event_id UNIQUE (originator_id, event_id),
    CONSTRAINT events_seq_is_positive CHECK (originator_version > 0)
) WITH (
    -- Nothing is ever updated here: vacuum has little to do, statistics must follow growth.
    autovacuum_vacuum_insert_scale_factor = 0.5,
    autovacuum_analyze_scale_factor = 0.02
);

-- Recorded history is never altered. The trigger stands against everybody, superusers included;
-- the owner gives up the privileges as well, so that two mistakes are needed and not one.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER events_are_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- ALWAYS: also for who has set session_replication_role.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_append_only;

REVOKE UPDATE, DELETE, TRUNCATE ON events FROM PUBLIC, CURRENT_USER;

-- Who pushes, and the last counter that each used up.
CREATE TABLE devices (
    space         text   COLLATE "C" NOT NULL,
    device        uuid   NOT NULL,
    counter       bigint NOT NULL DEFAULT 0,
    last_seen_ms  bigint NOT NULL,
    revoked_at_ms bigint,
    PRIMARY KEY (space, device)
);

-- How far each projection of each space has come. Written in the same transaction as what it
-- projected, so every event is applied exactly once. Readers read the live generation; a rebuild
-- fills another one beside it, and the swap moves `is_live`.
CREATE TABLE projections (
    space          text    COLLATE "C" NOT NULL,
    projection     text    COLLATE "C" NOT NULL,
    generation     integer NOT NULL,
    position       bigint  NOT NULL DEFAULT 0,
    is_live        boolean NOT NULL,
    fold_version   integer NOT NULL,  -- of the code that filled it; a rebuild resumes only its own
    stopped_at     bigint,            -- the seq of an event that could not be processed
    stopped_why    text,
    stopped_until  timestamptz,       -- when it is tried again
    PRIMARY KEY (space, projection, generation)
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX projections_one_live ON projections (space, projection) WHERE is_live;

-- The master table: the fold of the log, a row for every record that was ever touched.
CREATE TABLE records (
    space             text    COLLATE "C" NOT NULL,
    generation        integer NOT NULL,
    collection        text    COLLATE "C" NOT NULL,
    id                text    COLLATE "C" NOT NULL,
    fields            json    NOT NULL,  -- not jsonb: that has no NUL, and other numbers
    is_deleted        boolean NOT NULL,
    seq               bigint  NOT NULL,  -- of the event that moved its state last
    created_seq       bigint  NOT NULL,  -- 0: touched, but never was
    last_modified     timestamptz,
    writes            json    NOT NULL,  -- who wrote each field, as the merge needs it
    deleted           json,              -- its last delete, kept for ever
    touched_seq       bigint  NOT NULL,  -- what the guard `unchanged` asks for
    touched_by        uuid,
    touched_seq_other bigint  NOT NULL,
    PRIMARY KEY (space, generation, collection, id)
) WITH (fillfactor = 90);

CREATE INDEX records_by_seq ON records (space, generation, seq, collection, id)
    WHERE created_seq > 0;

-- The conflict ledger: every value that lost, and what it lost to.
CREATE TABLE conflicts (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    seq        bigint  NOT NULL,   -- the event at which it was decided
    number     integer NOT NULL,   -- 0, 1, 2 ... within that event
    collection text    COLLATE "C" NOT NULL,
    id         text    COLLATE "C" NOT NULL,
    document   json    NOT NULL,
    PRIMARY KEY (space, generation, seq, number)
);

CREATE INDEX conflicts_by_record ON conflicts (space, generation, collection, id);

-- Which id became of a device's own key. It follows from the key; this lists it.
CREATE TABLE local_ids (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    device     uuid    NOT NULL,
    collection text    COLLATE "C" NOT NULL,
    local_id   text    COLLATE "C" NOT NULL,
    id         text    COLLATE "C" NOT NULL,
    PRIMARY KEY (space, generation, device, collection, local_id)
);

-- The tree over each log (domain/merkle). Those that are not full are written again and again.
CREATE TABLE tiles (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    level      integer NOT NULL,   -- 0: of leaves
    number     bigint  NOT NULL,   -- 0, 1, 2 ... within its level
    hashes     bytea   NOT NULL,   -- 32 bytes each, 256 of them when it is full
    PRIMARY KEY (space, generation, level, number)
) WITH (fillfactor = 70);

-- Nothing makes hashes smaller, so nobody shall try.
ALTER TABLE tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- The last checkpoint that was signed and published, and why no further one is.
CREATE TABLE checkpoints (
    space        text        COLLATE "C" PRIMARY KEY,
    log          uuid,                        -- of which log it is
    size         bigint      NOT NULL DEFAULT 0,
    note         bytea,                       -- with the signatures of the witnesses
    signed_at    timestamptz,
    alarm        text,                        -- the code of what keeps the signer from signing
    alarm_detail text,
    alarm_since  timestamptz
);

-- Which migrations this database has had.
CREATE TABLE schema_migrations (
    name       text        COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
