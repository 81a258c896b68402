-- What is folded from the log, and how far.

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
