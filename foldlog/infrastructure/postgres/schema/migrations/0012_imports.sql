-- A space that is being imported is marked from its first row on, and hidden until it is whole.

ALTER TABLE spaces ADD COLUMN importing boolean NOT NULL DEFAULT false;

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

DROP TRIGGER events_are_append_only ON events;

CREATE TRIGGER events_are_append_only
    BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The first trigger also refuses a DELETE without rows, as long as no space is being imported.
CREATE TRIGGER events_are_deleted_by_no_one
    BEFORE DELETE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION pass_import_alone();

CREATE TRIGGER events_go_with_their_import
    BEFORE DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION pass_import_alone();

ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_append_only;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_deleted_by_no_one;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_go_with_their_import;

GRANT DELETE ON events TO CURRENT_USER;

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
