-- The log, and what an append needs to know.

-- Which migrations this database has had.
CREATE TABLE schema_migrations (
    name       text        COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row a space. Appending takes this row FOR UPDATE, so seq order is commit order.
CREATE TABLE spaces (
    space          text   COLLATE "C" PRIMARY KEY,
    log            uuid   NOT NULL DEFAULT gen_random_uuid(), -- changes only when history forked
    head           bigint NOT NULL DEFAULT 0,                 -- seq of the last event
    mark           text   NOT NULL DEFAULT '',                -- its mark
    received_at_ms bigint NOT NULL DEFAULT 0                  -- its time; never goes back
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
