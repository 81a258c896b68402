-- Erasing records: which ones were, and the one door to the log's rows.

ALTER TABLE spaces ADD COLUMN erased_seq bigint NOT NULL DEFAULT 0;

-- Which records were erased, and by which event: the last `record-erased` of each. A changeset that
-- has not seen it is stored without what it says of the record.
CREATE TABLE erasures (
    space      text   COLLATE "C" NOT NULL,
    collection text   COLLATE "C" NOT NULL,
    id         text   COLLATE "C" NOT NULL,
    seq        bigint NOT NULL,
    PRIMARY KEY (space, collection, id)
);

-- Statistics hold values as they are. Giving a column the type that it has throws them away.
ALTER TABLE events
    ALTER COLUMN state TYPE bytea,
    ALTER COLUMN salt TYPE bytea;
ALTER TABLE events
    ALTER COLUMN state SET STATISTICS 0,
    ALTER COLUMN salt SET STATISTICS 0;
ALTER TABLE local_ids ALTER COLUMN local_id SET STATISTICS 0;

DROP TRIGGER events_are_append_only ON events;

CREATE TRIGGER events_are_append_only
    BEFORE DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The one change of the log that passes, whoever makes it: an erasure, which this proves. Header and
-- remaining operations keep their bytes; each erased one is on a record of which a later event of
-- the log says that it was erased, and has left its commitment; the event's salt has given way to
-- those of the operations that remain; and all of it still hashes to the same leaf.
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

ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_append_only;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_change_by_erasure;

GRANT UPDATE (state, salt) ON events TO CURRENT_USER;

-- The door to that change, for whoever is granted it: by itself nobody but the owner.
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
