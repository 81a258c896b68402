-- The schema of a new Foldlog database. `migrations/` bring older databases to the same schema.
--
-- Every key begins with the space, because spaces are the unit of locking, order, sharing and later
-- sharding. Constraints, joins and sequences stay within one space. Names compare byte by byte
-- (COLLATE "C"), so pages have the same order on every server. Columns that end with `_ms` hold ms
-- since 1970.

-- One row for each space. An append locks this row, so seq order is commit order.
CREATE TABLE spaces (
    space           text   COLLATE "C" PRIMARY KEY,
    log             uuid   NOT NULL DEFAULT gen_random_uuid(), -- changes only when an admin declares a fork
    head            bigint NOT NULL DEFAULT 0,                 -- seq of the last event
    mark            text   NOT NULL DEFAULT '',                -- its mark
    received_at_ms  bigint NOT NULL DEFAULT 0,                 -- its time; never decreases
    event_bytes_max bigint NOT NULL DEFAULT 0,                 -- the largest `state` so far
    erased_seq      bigint NOT NULL DEFAULT 0,                 -- seq of the last `record-erased`
    importing       boolean NOT NULL DEFAULT false,            -- hidden until its import is whole
    alarm           text,                                      -- the events that are missing in the log
    alarm_since     timestamptz                                -- an alarm refuses appends and signatures
);

CREATE INDEX spaces_alarm ON spaces (space) WHERE alarm IS NOT NULL;
CREATE INDEX spaces_importing ON spaces (space) WHERE importing;

-- The log. The first four columns and the key are the aggregate stream of the eventsourcing library.
-- The service looks up events by the others. `state` is the event's JSON as readers receive it.
CREATE TABLE events (
    originator_id      text   COLLATE "C" NOT NULL,  -- the space
    originator_version bigint NOT NULL,              -- the seq: 1, 2, 3 ... without holes
    topic              text   NOT NULL,              -- kind and version of the stored form
    state              bytea  NOT NULL,
    event_id           uuid   NOT NULL,              -- a changeset's id: the idempotency key
    device             uuid,
    received_at_ms     bigint NOT NULL,
    collections        text[],                       -- the collections that a changeset touches
    salt               bytea  NOT NULL,              -- for the commitments to its operations
    ops_hash           bytea  NOT NULL,
    PRIMARY KEY (originator_id, originator_version),
    CONSTRAINT events_event_id UNIQUE (originator_id, event_id),
    CONSTRAINT events_seq_is_positive CHECK (originator_version > 0)
) WITH (
    -- Rows are almost never updated, so vacuum has little to do. Statistics must follow growth.
    autovacuum_vacuum_insert_scale_factor = 0.5,
    autovacuum_analyze_scale_factor = 0.02
);

-- Statistics hold copies of values, and must not keep erased ones.
ALTER TABLE events
    ALTER COLUMN state SET STATISTICS 0,
    ALTER COLUMN salt SET STATISTICS 0;

-- The log is append-only. The triggers apply to all roles, superusers included. The owner also gives
-- up the privileges, so it takes two mistakes to change the log.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER events_are_append_only
    BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A DELETE of events passes only for a space that is being imported. The lock keeps the mark until
-- the transaction ends, so the import cannot finish meanwhile.
CREATE FUNCTION pass_import_alone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_LEVEL = 'STATEMENT' THEN
        PERFORM FROM spaces WHERE importing;
    ELSE
        PERFORM FROM spaces WHERE space = OLD.originator_id AND importing FOR SHARE;
    END IF;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the log is append-only: % on % refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END
$$;

-- The first trigger also refuses a DELETE without rows, as long as no space is being imported.
CREATE TRIGGER events_are_deleted_by_no_one
    BEFORE DELETE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION pass_import_alone();

CREATE TRIGGER events_go_with_their_import
    BEFORE DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION pass_import_alone();

-- An UPDATE of the log passes only if this function proves that it is an erasure. The header and the
-- remaining operations keep their bytes. Each erased operation leaves its commitment, and a later
-- event of the log must say that its record was erased. The salts of the remaining operations replace
-- the event's salt. The event must still hash to the same leaf.
CREATE FUNCTION pass_erasure_alone() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept       record;
    old_text   text;
    new_text   text;
    header     text;
    old_ops    text[];
    new_ops    text[];
    erased     json;
    own        bytea;
    part       bigint;
    inner_key  bytea;
    outer_key  bytea;
    commitment bytea;
    joined     bytea := '';
    was_erased boolean;
    is_new     boolean := false;
    known      boolean;
BEGIN
    kept := NEW;
    kept.state := OLD.state;
    kept.salt := OLD.salt;
    IF kept *<> OLD THEN
        RAISE 'more than its operations is changed';
    END IF;
    old_text := convert_from(OLD.state, 'UTF8');
    new_text := convert_from(NEW.state, 'UTF8');
    -- A quote inside a string is escaped, so the first match is the key itself.
    header := left(old_text, position(',"ops":[' IN old_text) - 1);
    IF header = '' OR left(new_text, length(header) + 8) <> header || ',"ops":[' THEN
        RAISE 'it has no operations, or another header';
    END IF;
    -- Not `->`, which cannot read a value with \u0000; this one hands out the text as it stands.
    old_ops := ARRAY(SELECT json_array_elements(substr(old_text, length(header) + 8,
                     length(old_text) - length(header) - 8)::json)::text);
    new_ops := ARRAY(SELECT json_array_elements(substr(new_text, length(header) + 8,
                     length(new_text) - length(header) - 8)::json)::text);
    IF new_text <> header || ',"ops":[' || array_to_string(new_ops, ',') || ']}'
       OR cardinality(new_ops) <> cardinality(old_ops)
       OR octet_length(NEW.salt) <> 1 + 32 * cardinality(new_ops)
       OR get_byte(NEW.salt, 0) <> 1 THEN
        RAISE 'not the same operations, or not a salt for each';
    END IF;
    FOR i IN 1 .. cardinality(new_ops) LOOP
        own := substr(NEW.salt, 32 * i - 30, 32);
        was_erased := octet_length(OLD.salt) <> 32
                      AND substr(OLD.salt, 32 * i - 30, 32) = decode(repeat('00', 32), 'hex');
        IF own = decode(repeat('00', 32), 'hex') THEN
            erased := new_ops[i]::json;
            IF new_ops[i] !~ '^\{"op":"[a-z]+","collection":".*","erased":"[0-9a-f]{64}"\}$'
               OR ARRAY(SELECT json_object_keys(erased)) <> '{op,collection,id,erased}' THEN
                RAISE 'operation % is not in the form of an erased one', i - 1;
            ELSIF was_erased AND new_ops[i] <> old_ops[i] THEN
                RAISE 'operation % was erased before, and otherwise', i - 1;
            -- The old one is an object that begins in the same way, so it is on the same record.
            ELSIF left(old_ops[i], length(new_ops[i]) - 77)
                  <> left(new_ops[i], length(new_ops[i]) - 77)
                  OR substr(old_ops[i], length(new_ops[i]) - 76, 1) NOT IN (',', '}') THEN
                RAISE 'operation % is on another record', i - 1;
            END IF;
            IF NOT was_erased THEN
                is_new := true;
                EXECUTE format(
                    'SELECT EXISTS (
                         SELECT
                           FROM %1$I.erasures x
                           JOIN %1$I.events e
                             ON e.originator_id = x.space AND e.originator_version = x.seq
                          WHERE x.space = $1 AND x.collection = $2 AND x.id = $3 AND x.seq > $4
                            AND e.topic = ''record-erased/1''
                            AND convert_from(e.state, ''UTF8'')::json -> ''body'' ->> ''collection'' = $2
                            AND convert_from(e.state, ''UTF8'')::json -> ''body'' ->> ''id'' = $3
                     )', TG_TABLE_SCHEMA)
                   INTO known
                  USING OLD.originator_id, erased ->> 'collection', erased ->> 'id',
                        OLD.originator_version;
                IF NOT known THEN
                    RAISE 'no event says that the record of operation % was erased', i - 1;
                END IF;
            END IF;
            commitment := decode(erased ->> 'erased', 'hex');
        ELSE
            IF was_erased OR new_ops[i] <> old_ops[i] THEN
                RAISE 'operation % is another one', i - 1;
            END IF;
            -- HMAC-SHA-256 (RFC 2104) with a key of 32 bytes, of which there is none built in.
            inner_key := decode(repeat('36', 32), 'hex');
            outer_key := decode(repeat('5c', 32), 'hex');
            FOR word IN REVERSE 3 .. 0 LOOP
                part := ('x' || encode(substr(own, 8 * word + 1, 8), 'hex'))::bit(64)::bigint;
                inner_key := int8send(part # x'3636363636363636'::bigint) || inner_key;
                outer_key := int8send(part # x'5c5c5c5c5c5c5c5c'::bigint) || outer_key;
            END LOOP;
            commitment := sha256(outer_key || sha256(inner_key || convert_to(new_ops[i], 'UTF8')));
        END IF;
        joined := joined || commitment;
    END LOOP;
    IF NOT is_new THEN
        RAISE 'nothing is erased';
    ELSIF sha256(joined) <> OLD.ops_hash THEN
        RAISE 'the leaf would be another one';
    END IF;
    RETURN NEW;
EXCEPTION WHEN raise_exception OR data_exception THEN
    RAISE EXCEPTION 'the log is append-only: UPDATE on % refused at seq %: %',
                    TG_TABLE_NAME, OLD.originator_version, SQLERRM
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER events_change_by_erasure
    BEFORE UPDATE ON events
    FOR EACH ROW EXECUTE FUNCTION pass_erasure_alone();

-- ALWAYS: the triggers also run if a session has set session_replication_role.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_append_only;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_deleted_by_no_one;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_go_with_their_import;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_change_by_erasure;

REVOKE UPDATE, DELETE, TRUNCATE ON events FROM PUBLIC, CURRENT_USER;
GRANT UPDATE (state, salt), DELETE ON events TO CURRENT_USER;

-- The function for erasures. Only the owner and granted roles may call it.
CREATE FUNCTION erase_operations(space text, seqs bigint[], states bytea[], salts bytea[])
RETURNS SETOF bigint LANGUAGE sql SECURITY DEFINER
BEGIN ATOMIC
    UPDATE events
       SET state = new.state, salt = new.salt
      FROM unnest(seqs, states, salts) AS new (seq, state, salt)
     WHERE originator_id = space
       AND originator_version = new.seq
    RETURNING originator_version;
END;

REVOKE ALL ON FUNCTION erase_operations FROM PUBLIC;

-- The last `record-erased` event of each erased record. A changeset that has not seen it is stored
-- with its operations on the record erased.
CREATE TABLE erasures (
    space      text   COLLATE "C" NOT NULL,
    collection text   COLLATE "C" NOT NULL,
    id         text   COLLATE "C" NOT NULL,
    seq        bigint NOT NULL,
    PRIMARY KEY (space, collection, id)
);

-- Skipped events, each with the `event-skipped` event that names it. Written in the transaction of
-- that event, and derived from the log.
CREATE TABLE skipped (
    space  text   COLLATE "C" NOT NULL,
    seq    bigint NOT NULL,
    by_seq bigint NOT NULL,
    PRIMARY KEY (space, seq)
);

-- Devices, with the last counter of each. Registrations and revocations follow from events, and are
-- written in their transactions.
CREATE TABLE devices (
    space            text   COLLATE "C" NOT NULL,
    device           uuid   NOT NULL,
    counter          bigint NOT NULL DEFAULT 0,
    last_seen_ms     bigint,
    revoked_at_ms    bigint,
    registered_at_ms bigint,
    name             text,
    PRIMARY KEY (space, device)
);

-- Tokens with the SHA-256 of their secrets, each for one space ('' means every space). Written in the
-- transaction of the `token-granted` event. Tokens for every space have no event.
CREATE TABLE tokens (
    space          text   COLLATE "C" NOT NULL,
    token          uuid   NOT NULL,  -- its id; the same one may be granted for several spaces
    digest         bytea  NOT NULL,
    role           text   NOT NULL,
    device         uuid,
    name           text,
    granted_at_ms  bigint NOT NULL,
    granted_by     text,
    expires_at_ms  bigint,
    revoked_at_ms  bigint,
    revoked_by     text,
    revoked_reason text,
    PRIMARY KEY (space, token),
    CONSTRAINT tokens_digest UNIQUE (space, digest)
);

-- For lists of tokens in the order of their grants.
CREATE INDEX tokens_granted ON tokens (space, granted_at_ms, token);

-- A token is what its event says, for all roles and for ever. A row that no event of its space
-- describes is refused at the commit. The event is the last one of the log then, because both are
-- written under the lock of the space. A space that is being imported has no tokens, because its
-- events can still be removed. Tokens for every space ('') have no event; the service logs each new
-- one.
CREATE FUNCTION pass_granted_token_alone() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    body    json;
    expires text;
BEGIN
    SELECT convert_from(e.state, 'UTF8')::json -> 'body'
      INTO body
      FROM spaces s
      JOIN events e
        ON e.originator_id = s.space AND e.originator_version = s.head
     WHERE s.space = NEW.space
       AND NOT s.importing
       AND convert_from(e.state, 'UTF8')::json ->> 'kind' = 'token-granted';
    -- In two parts, because a time as one floating-point number loses ms of the far future.
    expires := to_char(to_timestamp(NEW.expires_at_ms / 1000) AT TIME ZONE 'UTC',
                       'YYYY-MM-DD"T"HH24:MI:SS.')
               || lpad((NEW.expires_at_ms % 1000)::text, 3, '0') || 'Z';
    -- Compared as JSON texts, because a name may contain an escape that PostgreSQL cannot read.
    IF (body -> 'token')::text IS DISTINCT FROM to_json(NEW.token)::text
       OR (body -> 'role')::text IS DISTINCT FROM to_json(NEW.role)::text
       OR (body -> 'device')::text IS DISTINCT FROM to_json(NEW.device)::text
       OR (body -> 'expires_at')::text IS DISTINCT FROM to_json(expires)::text
       OR (body -> 'digest')::text IS DISTINCT FROM to_json(encode(NEW.digest, 'hex'))::text THEN
        RAISE EXCEPTION 'a token is granted by its event alone: % on % refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER tokens_have_their_event
    AFTER INSERT ON tokens
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.space <> '') EXECUTE FUNCTION pass_granted_token_alone();

-- Afterwards a token can only be revoked, once. A revoked device stays revoked.
CREATE FUNCTION refuse_access() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'access only ends: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER tokens_are_revoked_once
    BEFORE UPDATE ON tokens
    FOR EACH ROW WHEN (
        OLD.revoked_at_ms IS NOT NULL
        OR NEW.revoked_at_ms IS NULL
        OR (OLD.space, OLD.token, OLD.digest, OLD.role, OLD.device, OLD.name,
            OLD.granted_at_ms, OLD.granted_by, OLD.expires_at_ms)
           IS DISTINCT FROM
           (NEW.space, NEW.token, NEW.digest, NEW.role, NEW.device, NEW.name,
            NEW.granted_at_ms, NEW.granted_by, NEW.expires_at_ms)
    )
    EXECUTE FUNCTION refuse_access();

CREATE TRIGGER devices_stay_revoked
    BEFORE UPDATE ON devices
    FOR EACH ROW WHEN (
        (OLD.space, OLD.device) IS DISTINCT FROM (NEW.space, NEW.device)
        OR OLD.revoked_at_ms IS NOT NULL
           AND OLD.revoked_at_ms IS DISTINCT FROM NEW.revoked_at_ms
    )
    EXECUTE FUNCTION refuse_access();

ALTER TABLE tokens ENABLE ALWAYS TRIGGER tokens_have_their_event;
ALTER TABLE tokens ENABLE ALWAYS TRIGGER tokens_are_revoked_once;
ALTER TABLE devices ENABLE ALWAYS TRIGGER devices_stay_revoked;

-- Tokens that wait for their device: an admin has issued a code, or a device trades its earlier token.
-- The event of the token is written when the device has claimed it. Written under the lock of the
-- space, except for the INSERT of a code.
CREATE TABLE enrolments (
    space               text   COLLATE "C" NOT NULL,
    token               uuid   NOT NULL,  -- the id that the token gets
    code                bytea,            -- SHA-256 of the code; NULL in a trade
    traded              uuid,             -- the earlier token of the device; NULL with a code
    name                text,
    issued_at_ms        bigint NOT NULL,
    issued_by           text,
    expires_at_ms       bigint NOT NULL,  -- the code; a claim can be repeated afterwards
    token_expires_at_ms bigint,
    device              uuid,             -- the claim: NULL until a device has the token
    digest              bytea,
    PRIMARY KEY (space, token),
    CONSTRAINT enrolments_code UNIQUE (space, code),
    CONSTRAINT enrolments_traded UNIQUE (space, traded)
);

-- A claim is final. Otherwise a code that was used could be used for another device.
CREATE TRIGGER enrolments_are_claimed_once
    BEFORE UPDATE ON enrolments
    FOR EACH ROW WHEN (
        OLD.device IS NOT NULL
        OR (OLD.space, OLD.token, OLD.code, OLD.traded, OLD.name, OLD.issued_at_ms, OLD.issued_by,
            OLD.expires_at_ms, OLD.token_expires_at_ms)
           IS DISTINCT FROM
           (NEW.space, NEW.token, NEW.code, NEW.traded, NEW.name, NEW.issued_at_ms, NEW.issued_by,
            NEW.expires_at_ms, NEW.token_expires_at_ms)
    )
    EXECUTE FUNCTION refuse_access();

ALTER TABLE enrolments ENABLE ALWAYS TRIGGER enrolments_are_claimed_once;

-- The head of a log never moves back over an event, for all roles. It only moves back to the last
-- event that is left, when an operator forks a log that has lost its end.
CREATE FUNCTION keep_events_below_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM events WHERE originator_id = NEW.space AND originator_version > NEW.head) THEN
        RAISE EXCEPTION 'the log is append-only: % on % refused: events come after this head',
                        TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER spaces_keep_their_head
    BEFORE UPDATE ON spaces
    FOR EACH ROW WHEN (NEW.head < OLD.head) EXECUTE FUNCTION keep_events_below_head();

ALTER TABLE spaces ENABLE ALWAYS TRIGGER spaces_keep_their_head;

-- The functions find the tables of this schema only, whatever the caller's search_path is.
DO $$
DECLARE
    guard text;
BEGIN
    FOREACH guard IN ARRAY ARRAY['pass_granted_token_alone()', 'keep_events_below_head()'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp',
                       guard, current_schema());
    END LOOP;
END
$$;

-- All versions of the schemas of collections. Written in the transaction of the `collection-defined`
-- event, because pushes are decided by them, and derived from the log.
CREATE TABLE collections (
    space      text    COLLATE "C" NOT NULL,
    collection text    COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    seq        bigint  NOT NULL,  -- of the event
    digest     text    NOT NULL,  -- of the schema; the key of the cache of compiled schemas
    schema     json    NOT NULL,
    defined_at text    NOT NULL,  -- when the event was received
    defined_by text,
    is_forced  boolean NOT NULL,
    PRIMARY KEY (space, collection, version)
);

-- Imports that were removed before they were whole. Rows are written by `remove_import` alone.
CREATE TABLE removed_imports (
    space      text        COLLATE "C" NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    log        uuid        NOT NULL,
    head       bigint      NOT NULL,  -- the number of removed events
    why        text        NOT NULL,
    removed_by text        NOT NULL DEFAULT session_user,
    PRIMARY KEY (space, removed_at)
);

CREATE TRIGGER removed_imports_are_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON removed_imports
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE removed_imports ENABLE ALWAYS TRIGGER removed_imports_are_append_only;

-- The mark of an import is set only by the INSERT of a space without events. Afterwards it can only
-- be cleared. The row of a space never gets another name, and never goes while it has events.
CREATE FUNCTION guard_space() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE'
       OR EXISTS (SELECT
                    FROM events
                   WHERE originator_id = CASE TG_OP WHEN 'INSERT' THEN NEW.space ELSE OLD.space END)
       OR TG_OP = 'DELETE' AND NOT OLD.importing
       OR TG_OP = 'INSERT' AND NEW.head <> 0 THEN
        RAISE EXCEPTION 'the log is append-only: % on spaces refused: only a new space is importing',
                        TG_OP
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN CASE TG_OP WHEN 'INSERT' THEN NEW ELSE OLD END;
END
$$;

CREATE TRIGGER spaces_begin_their_import
    BEFORE INSERT ON spaces
    FOR EACH ROW WHEN (NEW.importing) EXECUTE FUNCTION guard_space();

CREATE TRIGGER spaces_keep_their_name_and_mark
    BEFORE UPDATE ON spaces
    FOR EACH ROW WHEN (NEW.space <> OLD.space OR NEW.importing AND NOT OLD.importing)
    EXECUTE FUNCTION guard_space();

CREATE TRIGGER spaces_go_with_their_import
    BEFORE DELETE ON spaces
    FOR EACH ROW EXECUTE FUNCTION guard_space();

CREATE TRIGGER spaces_are_never_truncated
    BEFORE TRUNCATE ON spaces
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE spaces ENABLE ALWAYS TRIGGER spaces_begin_their_import;
ALTER TABLE spaces ENABLE ALWAYS TRIGGER spaces_keep_their_name_and_mark;
ALTER TABLE spaces ENABLE ALWAYS TRIGGER spaces_go_with_their_import;
ALTER TABLE spaces ENABLE ALWAYS TRIGGER spaces_are_never_truncated;

-- Removes an import that is unfinished, and returns the number of its events. Returns NULL, and
-- changes nothing, for any other space. The row lock makes this function and the end of the import
-- wait for each other. Only the owner and granted roles may call it.
CREATE FUNCTION remove_import(wanted text, why text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    marked record;
BEGIN
    SELECT log, head
      INTO marked
      FROM spaces
     WHERE space = wanted
       AND importing
       FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    DELETE FROM events WHERE originator_id = wanted;
    DELETE FROM erasures WHERE space = wanted;
    DELETE FROM skipped WHERE space = wanted;
    DELETE FROM devices WHERE space = wanted;
    DELETE FROM collections WHERE space = wanted;
    DELETE FROM spaces WHERE space = wanted;
    INSERT INTO removed_imports (space, log, head, why)
    VALUES (wanted, marked.log, marked.head, why);
    RETURN marked.head;
END
$$;

REVOKE ALL ON FUNCTION remove_import FROM PUBLIC;

-- The functions find the tables of this schema only, whatever the caller's search_path is.
DO $$
DECLARE
    guard text;
BEGIN
    FOREACH guard IN ARRAY ARRAY['guard_space()', 'pass_import_alone()', 'remove_import(text, text)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp',
                       guard, current_schema());
    END LOOP;
END
$$;

-- The position of each projection of each space. It moves in the transaction of the projected rows,
-- so each event is applied exactly once. Readers use the live generation. A rebuild fills a second
-- one, and the swap moves `is_live`.
CREATE TABLE projections (
    space          text    COLLATE "C" NOT NULL,
    projection     text    COLLATE "C" NOT NULL,
    generation     integer NOT NULL,
    position       bigint  NOT NULL DEFAULT 0,
    is_live        boolean NOT NULL,
    fold_version   integer NOT NULL,  -- of the code that filled it; only that code may go on
    stopped_at     bigint,            -- the seq of an event that cannot be processed
    stopped_why    text,
    stopped_until  timestamptz,       -- the time of the next attempt
    has_history    boolean NOT NULL DEFAULT true,  -- whether it has the versions of all events
    failing_why    text,              -- a lasting fault of the database, which no event has caused
    failing_since  timestamptz,
    has_older_rows boolean NOT NULL DEFAULT false,  -- whether an older version of the code began it
    PRIMARY KEY (space, projection, generation)
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX projections_one_live ON projections (space, projection) WHERE is_live;

-- For the alarms of all spaces. Both are almost empty.
CREATE INDEX projections_alarms ON projections (space)
    WHERE stopped_at IS NOT NULL OR failing_why IS NOT NULL;

-- The master table: the fold of the log, with a row for each record that an event has touched.
CREATE TABLE records (
    space             text    COLLATE "C" NOT NULL,
    generation        integer NOT NULL,
    collection        text    COLLATE "C" NOT NULL,
    id                text    COLLATE "C" NOT NULL,
    own_fields        json    NOT NULL,  -- json, because jsonb cannot store NUL and changes numbers
    is_deleted        boolean NOT NULL,
    seq               bigint  NOT NULL,  -- of the last event that changed its state
    created_seq       bigint  NOT NULL,  -- 0: touched, but never created
    last_modified     timestamptz,
    writes            json    NOT NULL,  -- the last write of each field, for the merge
    deleted           json,              -- its last delete, kept permanently
    touched_seq       bigint  NOT NULL,  -- for the guard `unchanged`
    touched_by        uuid,
    touched_seq_other bigint  NOT NULL,
    apart             json,              -- fields that are in the log or in versions; mostly NULL
    PRIMARY KEY (space, generation, collection, id)
) WITH (fillfactor = 90);

CREATE INDEX records_by_seq ON records (space, generation, seq, collection, id)
    WHERE created_seq > 0;

-- All states of all records: one row for each event that touched the record, also if all its values
-- lost. The last row up to a seq is the record right after that seq. Of a large record a row has only
-- the fields that changed, and `apart` names the versions that have the others.
CREATE TABLE versions (
    space         text    COLLATE "C" NOT NULL,
    generation    integer NOT NULL,
    collection    text    COLLATE "C" NOT NULL,
    id            text    COLLATE "C" NOT NULL,
    seq           bigint  NOT NULL,  -- of the event that touched it
    own_fields    json    NOT NULL,
    is_deleted    boolean NOT NULL,
    state_seq     bigint  NOT NULL,  -- the `seq` of the record: of the last event that changed its state
    created_seq   bigint  NOT NULL,
    last_modified timestamptz NOT NULL,
    is_first      boolean NOT NULL,  -- whether this event created the record
    apart         json,              -- fields that are in the log or in earlier versions
    own_writes    json,              -- only of a record that is stored in parts
    PRIMARY KEY (space, generation, collection, id, seq)
);

-- The order of creation. A page of an early moment skips later records by this index.
CREATE INDEX versions_first ON versions (space, generation, collection, seq, id)
    WHERE is_first;

-- The conflict ledger: all values that lost, each with the value that won.
CREATE TABLE conflicts (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    seq        bigint  NOT NULL,   -- the event that decided it
    number     integer NOT NULL,   -- 0, 1, 2 ... within that event
    collection text    COLLATE "C" NOT NULL,
    id         text    COLLATE "C" NOT NULL,
    entry      json    NOT NULL,
    field      bytea,              -- its name in UTF-8, which may contain NUL
    lost_by    uuid,
    won_by     uuid,
    PRIMARY KEY (space, generation, seq, number)
);

CREATE INDEX conflicts_by_record ON conflicts (space, generation, collection, id, seq, number);

-- The record ids that were made from the local ids of devices, for listing them.
CREATE TABLE local_ids (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    device     uuid    NOT NULL,
    collection text    COLLATE "C" NOT NULL,
    local_id   text    COLLATE "C" NOT NULL,
    id         text    COLLATE "C" NOT NULL,
    PRIMARY KEY (space, generation, device, collection, local_id)
);

ALTER TABLE local_ids ALTER COLUMN local_id SET STATISTICS 0;

-- The Merkle tree over each log (domain/merkle) in tiles. An unfinished tile is updated repeatedly.
CREATE TABLE tiles (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    level      integer NOT NULL,   -- 0: the leaves
    number     bigint  NOT NULL,   -- 0, 1, 2 ... within its level
    hashes     bytea   NOT NULL,   -- 32 bytes each, 256 in a full tile
    PRIMARY KEY (space, generation, level, number)
) WITH (fillfactor = 70);

-- Compression would waste time on hashes.
ALTER TABLE tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- The last published checkpoint of each space, and the error that stops the signer.
CREATE TABLE checkpoints (
    space        text        COLLATE "C" PRIMARY KEY,
    log          uuid,                        -- the log that it covers
    size         bigint      NOT NULL DEFAULT 0,
    note         bytea,                       -- with the signatures of witnesses
    signed_at    timestamptz,
    alarm        text,                        -- the code of that error
    alarm_detail text,
    alarm_since  timestamptz,
    alarm_raised_by uuid                      -- the folder of that signer; only this one clears it
);

CREATE INDEX checkpoints_alarms ON checkpoints (space) WHERE alarm IS NOT NULL;

-- The folders of last checkpoints (signing/folders). One of each use signs; the others were replaced
-- by a takeover, or are refused.
CREATE TABLE signers (
    use           text        COLLATE "C" NOT NULL,    -- log, witness
    folder        uuid        NOT NULL,                -- the id in the folder
    key           text        COLLATE "C" NOT NULL,    -- the public key that its service uses
    signs         boolean     NOT NULL,
    since         timestamptz NOT NULL DEFAULT now(),
    replaced_by   uuid,                                -- the trace of a takeover
    replaced_at   timestamptz,
    replaced_why  text,
    refused_why   text,                                -- an alarm
    refused_since timestamptz,
    PRIMARY KEY (folder, key)
);

CREATE UNIQUE INDEX signers_one ON signers (use) WHERE signs;

-- The migrations that were applied to this database.
CREATE TABLE schema_migrations (
    name       text        COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
