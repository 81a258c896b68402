-- A fault of the database that keeps a projection from going on, such as a full disk. It never halts
-- the projection, because no event is its cause.
ALTER TABLE projections
    ADD COLUMN failing_why   text,
    ADD COLUMN failing_since timestamptz;

-- For the alarms of all spaces. Both are almost empty.
CREATE INDEX projections_alarms ON projections (space)
    WHERE stopped_at IS NOT NULL OR failing_why IS NOT NULL;
CREATE INDEX checkpoints_alarms ON checkpoints (space) WHERE alarm IS NOT NULL;

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
