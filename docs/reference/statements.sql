-- The SQL statements that the service builds from parts, in full. All other statements stand in the
-- code as they are sent. Written by `python -m tests.statements`; a test compares it with the code.

-- foldlog.infrastructure.postgres.append.records_at_head.SELECT_RECORDS_AND_POSITION
SELECT p.position, p.generation, collection, id, fields, is_deleted, seq, created_seq, last_modified, writes, deleted, touched_seq, touched_by, touched_seq_other, apart
  FROM projections p
  LEFT JOIN LATERAL (
SELECT collection,
       id,
       CASE WHEN bytes <= %(bytes_max)s THEN own_fields END AS fields,
       is_deleted,
       seq,
       created_seq,
       last_modified,
       CASE WHEN bytes <= %(bytes_max)s THEN writes END AS writes,
       deleted,
       touched_seq,
       touched_by,
       touched_seq_other,
       apart
  FROM (
       SELECT r.*,
              sum(octet_length(own_fields::text) + octet_length(writes::text)) OVER (
                  ORDER BY collection, id ROWS UNBOUNDED PRECEDING
              ) AS bytes
         FROM records r
         JOIN unnest(%(collections)s::text[], %(ids)s::text[]) AS wanted (collection, id)
        USING (collection, id)
        WHERE r.space = p.space
          AND r.generation = p.generation
       ) measured
 ORDER BY collection, id
) found ON true
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.append.records_at_head.SELECT_TAIL
SELECT CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN 'skipped/1' ELSE topic END, CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8') ELSE state END
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(position)s
   AND originator_version <= %(head)s
   AND (collections && %(collections)s::text[] OR topic LIKE 'record-erased/%%')
 ORDER BY originator_version;

-- foldlog.infrastructure.postgres.append.records_at_head.SELECT_TAIL_BYTES
SELECT coalesce(sum(octet_length(state)), 0)
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(position)s
   AND originator_version <= %(head)s
   AND (collections && %(collections)s::text[] OR topic LIKE 'record-erased/%%');

-- foldlog.infrastructure.postgres.audit.master_rows.SELECT_RECORDS
SELECT collection,
       id,
       CASE WHEN octet_length(own_fields::text) <= 1000
            THEN own_fields::text
            ELSE 'sha256:' || encode(sha256(convert_to(own_fields::text, 'UTF8')), 'hex')
       END AS own_fields,
       is_deleted,
       seq,
       created_seq,
       (extract(epoch FROM last_modified) * 1000)::float8 AS last_modified,
       CASE WHEN octet_length(writes::text) <= 1000
            THEN writes::text
            ELSE 'sha256:' || encode(sha256(convert_to(writes::text, 'UTF8')), 'hex')
       END AS writes,
       deleted::text,
       touched_seq,
       touched_by::text,
       touched_seq_other,
       CASE WHEN octet_length(apart::text) <= 1000
            THEN apart::text
            ELSE 'sha256:' || encode(sha256(convert_to(apart::text, 'UTF8')), 'hex')
       END AS apart
  FROM records
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.audit.master_rows.SELECT_VERSIONS
SELECT collection,
       id,
       seq,
       CASE WHEN octet_length(own_fields::text) <= 1000
            THEN own_fields::text
            ELSE 'sha256:' || encode(sha256(convert_to(own_fields::text, 'UTF8')), 'hex')
       END AS own_fields,
       is_deleted,
       state_seq,
       created_seq,
       (extract(epoch FROM last_modified) * 1000)::float8 AS last_modified,
       is_first,
       CASE WHEN octet_length(apart::text) <= 1000
            THEN apart::text
            ELSE 'sha256:' || encode(sha256(convert_to(apart::text, 'UTF8')), 'hex')
       END AS apart,
       CASE WHEN octet_length(own_writes::text) <= 1000
            THEN own_writes::text
            ELSE 'sha256:' || encode(sha256(convert_to(own_writes::text, 'UTF8')), 'hex')
       END AS own_writes
  FROM versions
  JOIN unnest(%(collections)s::text[], %(ids)s::text[], %(seqs)s::bigint[])
       AS wanted (collection, id, seq)
 USING (collection, id, seq)
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY collection, id, seq;

-- foldlog.infrastructure.postgres.audit.master_rows.SELECT_CONFLICTS
SELECT seq,
       number,
       collection,
       id,
       CASE WHEN octet_length(entry::text) <= 1000
            THEN entry::text
            ELSE 'sha256:' || encode(sha256(convert_to(entry::text, 'UTF8')), 'hex')
       END AS entry,
       encode(field, 'hex') AS field,
       lost_by::text,
       won_by::text
  FROM conflicts
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY seq, number;

-- foldlog.infrastructure.postgres.fork.END_SIGNING_ALARM
UPDATE checkpoints
   SET alarm = NULL,
       alarm_detail = NULL,
       alarm_since = NULL,
       alarm_raised_by = NULL
 WHERE space = %(space)s
RETURNING space;

-- foldlog.infrastructure.postgres.log.ranges.SELECT_PAGE
SELECT originator_version, state, ops_hash,
       device = %(own)s::uuid AND topic LIKE 'changeset/%%' AS is_own,
       CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8') END AS in_its_place
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.log.ranges.SELECT_FILTERED_PAGE
SELECT originator_version, state, ops_hash,
       device = %(own)s::uuid AND topic LIKE 'changeset/%%' AS is_own,
       CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8') END AS in_its_place
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
   AND (collections IS NULL OR collections && %(collections)s::text[])
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
   AND (collections IS NULL OR collections && %(collections)s::text[])
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.log.ranges.SELECT_ENTRIES
SELECT
       originator_version, split_part(topic, '/', 1), event_id::text, device::text,
       received_at_ms, collections, state, salt, ops_hash
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_CONFLICTS['all']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, seq, number, document
          FROM (
               SELECT *, sum(octet_length(document::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(document)) OVER in_order AS stored_through
                        FROM (
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
           AND (seq, number) <= (%(through_seq)s, %(through_number)s)
           AND (%(device)s::uuid IS NULL OR %(device)s::uuid IN (lost_by, won_by))
           AND (%(field)s::bytea IS NULL OR field = %(field)s::bytea)
         ORDER BY seq, number
         LIMIT %(limit)s
) candidate
                      WINDOW in_order AS (ORDER BY seq, number ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY seq, number;

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_CONFLICTS['collection']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, seq, number, document
          FROM (
               SELECT *, sum(octet_length(document::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(document)) OVER in_order AS stored_through
                        FROM (
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
           AND (seq, number) <= (%(through_seq)s, %(through_number)s)
           AND collection = %(collection)s
           AND (%(device)s::uuid IS NULL OR %(device)s::uuid IN (lost_by, won_by))
           AND (%(field)s::bytea IS NULL OR field = %(field)s::bytea)
         ORDER BY seq, number
         LIMIT %(limit)s
) candidate
                      WINDOW in_order AS (ORDER BY seq, number ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY seq, number;

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_CONFLICTS['record']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, seq, number, document
          FROM (
               SELECT *, sum(octet_length(document::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(document)) OVER in_order AS stored_through
                        FROM (
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
           AND (seq, number) <= (%(through_seq)s, %(through_number)s)
           AND collection = %(collection)s
           AND id = %(id)s
           AND (%(device)s::uuid IS NULL OR %(device)s::uuid IN (lost_by, won_by))
           AND (%(field)s::bytea IS NULL OR field = %(field)s::bytea)
         ORDER BY seq, number
         LIMIT %(limit)s
) candidate
                      WINDOW in_order AS (ORDER BY seq, number ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY seq, number;

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_SCAN_END['all']
SELECT c.seq, c.number
  FROM projections p
  JOIN conflicts c
    ON c.space = p.space AND c.generation = p.generation
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND c.space = %(space)s
   AND (c.seq, c.number) > (%(after_seq)s, %(after_number)s)
 ORDER BY c.seq, c.number
OFFSET %(scan_max)s - 1
 LIMIT 1;

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_SCAN_END['collection']
SELECT c.seq, c.number
  FROM projections p
  JOIN conflicts c
    ON c.space = p.space AND c.generation = p.generation
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND c.space = %(space)s
   AND (c.seq, c.number) > (%(after_seq)s, %(after_number)s)
           AND collection = %(collection)s
 ORDER BY c.seq, c.number
OFFSET %(scan_max)s - 1
 LIMIT 1;

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_SCAN_END['record']
SELECT c.seq, c.number
  FROM projections p
  JOIN conflicts c
    ON c.space = p.space AND c.generation = p.generation
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND c.space = %(space)s
   AND (c.seq, c.number) > (%(after_seq)s, %(after_number)s)
           AND collection = %(collection)s
           AND id = %(id)s
 ORDER BY c.seq, c.number
OFFSET %(scan_max)s - 1
 LIMIT 1;

-- foldlog.infrastructure.postgres.master.diff.SELECT_TOUCHING
SELECT originator_version, CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8') ELSE state END
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.master.diff.SELECT_TOUCHING_ONE
SELECT originator_version, CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8') ELSE state END
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
   AND collections @> ARRAY[%(collection)s::text]
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
   AND collections @> ARRAY[%(collection)s::text]
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.master.diff.SELECT_DIFFERENT
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, place_seq, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart, fields_before, is_deleted_before, last_modified_before, seq_before,
        created_seq_before, apart_before
          FROM (
               SELECT *, sum(octet_length(fields::text) + octet_length(fields_before::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields) + pg_column_size(fields_before)) OVER in_order AS stored_through
                        FROM (
        SELECT state.*,
               state.version_seq AS place_seq,
               coalesce(before.fields, '{}'::json) AS fields_before,
               coalesce(before.is_deleted, true) AS is_deleted_before,
               before.last_modified AS last_modified_before,
               before.seq AS seq_before,
               before.created_seq AS created_seq_before,
               before.apart AS apart_before
          FROM unnest(
                   %(seqs)s::bigint[], %(collections)s::text[], %(ids)s::text[]
               ) AS touched (seq, collection, id)
         CROSS JOIN LATERAL (
               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = touched.collection
                  AND v.id = touched.id
                  AND v.seq <= %(to)s
                ORDER BY v.seq DESC
                LIMIT 1
    ) state
          LEFT JOIN LATERAL (

               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = touched.collection
                  AND v.id = touched.id
                  AND v.seq <= %(start)s
                ORDER BY v.seq DESC
                LIMIT 1

               ) before ON true
         WHERE state.version_seq = touched.seq
           AND state.seq > %(start)s
           AND NOT (state.is_deleted AND coalesce(before.is_deleted, true))
           AND (touched.seq, touched.collection, touched.id)
               > (%(after_seq)s, %(after_collection)s, %(after_id)s)
         ORDER BY touched.seq, touched.collection, touched.id
         LIMIT %(limit)s
    ) candidate
                      WINDOW in_order AS (ORDER BY place_seq, collection, id ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY place_seq, collection, id;

-- foldlog.infrastructure.postgres.master.moments.SELECT_AS_OF
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart, first_seq
          FROM (
               SELECT *, sum(octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT state.*, f.seq AS first_seq
          FROM versions f
         CROSS JOIN LATERAL (
               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = f.collection
                  AND v.id = f.id
                  AND v.seq <= %(as_of)s
                ORDER BY v.seq DESC
                LIMIT 1
    ) state
         WHERE f.space = p.space
           AND f.generation = p.generation
           AND f.is_first
           AND f.collection BETWEEN %(first_collection)s AND %(last_collection)s
           AND f.seq <= %(as_of)s
           AND (f.collection, f.seq, f.id) > (%(after_collection)s, %(after_seq)s, %(after_id)s)
           AND NOT state.is_deleted
         ORDER BY f.collection, f.seq, f.id
         LIMIT %(limit)s
    ) candidate
                      WINDOW in_order AS (ORDER BY collection, first_seq, id ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, first_seq, id;

-- foldlog.infrastructure.postgres.master.moments.SELECT_ONE_AS_OF
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT 1 AS number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart
          FROM (
               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = %(collection)s
                  AND v.id = %(id)s
                  AND v.seq <= %(as_of)s
                ORDER BY v.seq DESC
                LIMIT 1
    ) state
    ) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.projection.SELECT_EVENTS
SELECT originator_version,
       CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN 'skipped/1' ELSE topic END,
       CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s))
            THEN convert_to(
                '{"seq":' || originator_version || ',"kind":"skipped","id":"' || event_id ||
                '","received_at":"' || to_char(
                    to_timestamp(received_at_ms / 1000.0) AT TIME ZONE 'UTC',
                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'
                ) || '"}', 'UTF8') ELSE state END
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.master.record_reader.SELECT_RECORDS
SELECT collection,
       id,
       CASE WHEN bytes <= %(bytes_max)s THEN own_fields END AS fields,
       is_deleted,
       seq,
       created_seq,
       last_modified,
       CASE WHEN bytes <= %(bytes_max)s THEN writes END AS writes,
       deleted,
       touched_seq,
       touched_by,
       touched_seq_other,
       apart
  FROM (
       SELECT r.*,
              sum(octet_length(own_fields::text) + octet_length(writes::text)) OVER (
                  ORDER BY collection, id ROWS UNBOUNDED PRECEDING
              ) AS bytes
         FROM records r
         JOIN unnest(%(collections)s::text[], %(ids)s::text[]) AS wanted (collection, id)
        USING (collection, id)
        WHERE r.space = %(space)s
          AND r.generation = %(generation)s
       ) measured
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.snapshots.SELECT_SNAPSHOT
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart, writes, deleted, erased_seq
          FROM (
               SELECT *, sum(octet_length(fields::text) + octet_length(writes::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields) + pg_column_size(writes)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, own_fields AS fields, is_deleted, last_modified, seq, created_seq, apart, writes, deleted,
               (
                   SELECT x.seq
                     FROM erasures x
                    WHERE s.erased_seq > 0
                      AND x.space = r.space
                      AND x.collection = r.collection
                      AND x.id = r.id
               ) AS erased_seq
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq <> 0
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    ) candidate
                      WINDOW in_order AS (ORDER BY collection, id ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.table.SELECT_LIVE
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart
          FROM (
               SELECT *, sum(octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, own_fields AS fields, is_deleted, last_modified, seq, created_seq, apart
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND NOT is_deleted
           AND created_seq <> 0
           AND collection BETWEEN %(first_collection)s AND %(last_collection)s
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    ) candidate
                      WINDOW in_order AS (ORDER BY collection, id ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.table.SELECT_CHANGED
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart
          FROM (
               SELECT *, sum(octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, own_fields AS fields, is_deleted, last_modified, seq, created_seq, apart
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND (%(collection)s::text IS NULL OR collection = %(collection)s)
           AND seq > %(changed_after)s
         ORDER BY seq
         FETCH FIRST %(limit)s ROWS WITH TIES
    ) candidate
                      WINDOW in_order AS (ORDER BY seq, collection, id ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY seq, collection, id;

-- foldlog.infrastructure.postgres.master.table.SELECT_OF_SEQ
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, apart
          FROM (
               SELECT *, sum(octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, own_fields AS fields, is_deleted, last_modified, seq, created_seq, apart
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND (%(collection)s::text IS NULL OR collection = %(collection)s)
           AND seq = %(split_seq)s
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    ) candidate
                      WINDOW in_order AS (ORDER BY collection, id ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.table.SELECT_ONE
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT 1 AS number_of_candidates, collection, id, own_fields AS fields, is_deleted, last_modified, seq, created_seq, apart
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND collection = %(collection)s
           AND id = %(id)s
    ) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.table.SELECT_LOCAL_IDS
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT 1 AS number_of_candidates, collection, local_id, id
          FROM local_ids l
         WHERE l.space = p.space
           AND l.generation = p.generation
           AND l.device = %(device)s::uuid
           AND (collection, local_id) > (%(after_collection)s, %(after_local_id)s)
         ORDER BY collection, local_id
         LIMIT %(limit)s
    ) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, local_id;

-- foldlog.infrastructure.postgres.master.versions.SELECT_VERSIONS['oldest']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, version, header, is_deleted, fields_before, fields, apart_before, apart
          FROM (
               SELECT *, sum(octet_length(fields_before::text) + octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields_before) + pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT here.seq AS version,
               substr(e.state, 1, %(head_bytes_max)s) AS header,
               here.is_deleted,
               coalesce(before.fields, '{}'::json) AS fields_before,
               here.own_fields AS fields,
               before.apart AS apart_before,
               here.apart
          FROM versions here
          JOIN events e
            ON e.originator_id = here.space AND e.originator_version = here.seq
          LEFT JOIN LATERAL (

               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = here.collection
                  AND v.id = here.id
                  AND v.seq <= here.seq - 1
                ORDER BY v.seq DESC
                LIMIT 1

               ) before ON true
         WHERE here.space = p.space
           AND here.generation = p.generation
           AND here.collection = %(collection)s
           AND here.id = %(id)s
           AND here.seq > %(after)s
         ORDER BY here.seq ASC
         LIMIT %(limit)s
        ) candidate
                      WINDOW in_order AS (ORDER BY version ASC ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY version ASC;

-- foldlog.infrastructure.postgres.master.versions.SELECT_VERSIONS['newest']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, version, header, is_deleted, fields_before, fields, apart_before, apart
          FROM (
               SELECT *, sum(octet_length(fields_before::text) + octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields_before) + pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT here.seq AS version,
               substr(e.state, 1, %(head_bytes_max)s) AS header,
               here.is_deleted,
               coalesce(before.fields, '{}'::json) AS fields_before,
               here.own_fields AS fields,
               before.apart AS apart_before,
               here.apart
          FROM versions here
          JOIN events e
            ON e.originator_id = here.space AND e.originator_version = here.seq
          LEFT JOIN LATERAL (

               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = here.collection
                  AND v.id = here.id
                  AND v.seq <= here.seq - 1
                ORDER BY v.seq DESC
                LIMIT 1

               ) before ON true
         WHERE here.space = p.space
           AND here.generation = p.generation
           AND here.collection = %(collection)s
           AND here.id = %(id)s
           AND here.seq < %(after)s
         ORDER BY here.seq DESC
         LIMIT %(limit)s
        ) candidate
                      WINDOW in_order AS (ORDER BY version DESC ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY version DESC;

-- foldlog.infrastructure.postgres.master.versions.SELECT_LOST['oldest']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, seq, number, document
          FROM (
               SELECT *, sum(octet_length(document::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(document)) OVER in_order AS stored_through
                        FROM (
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND collection = %(collection)s
           AND id = %(id)s
           AND seq BETWEEN %(first)s AND %(last)s
         ORDER BY seq ASC, number ASC
         LIMIT %(limit)s
        ) candidate
                      WINDOW in_order AS (ORDER BY seq ASC, number ASC ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY seq ASC, number ASC;

-- foldlog.infrastructure.postgres.master.versions.SELECT_LOST['newest']
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, seq, number, document
          FROM (
               SELECT *, sum(octet_length(document::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(document)) OVER in_order AS stored_through
                        FROM (
        SELECT seq, number, entry AS document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND collection = %(collection)s
           AND id = %(id)s
           AND seq BETWEEN %(first)s AND %(last)s
         ORDER BY seq DESC, number DESC
         LIMIT %(limit)s
        ) candidate
                      WINDOW in_order AS (ORDER BY seq DESC, number DESC ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
) page ON true
 WHERE s.space = %(space)s
 ORDER BY seq DESC, number DESC;

-- foldlog.infrastructure.postgres.proofs.projection.SELECT_LEAVES
SELECT originator_version, substr(state, 1, 65457), ops_hash,
       CASE WHEN originator_version = ANY (ARRAY(
                SELECT k.seq FROM skipped k WHERE k.space = %(space)s)) THEN sha256(state) END
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.proofs.signers.END_SIGNING_ALARMS
UPDATE checkpoints
   SET alarm = NULL,
       alarm_detail = NULL,
       alarm_since = NULL,
       alarm_raised_by = NULL
 WHERE alarm IS NOT NULL;

-- foldlog.infrastructure.postgres.proofs.tree.END_ALARM
UPDATE checkpoints
   SET alarm = NULL,
       alarm_detail = NULL,
       alarm_since = NULL,
       alarm_raised_by = NULL
 WHERE space = %(space)s
   AND alarm IS NOT NULL
   AND (alarm_raised_by IS NULL OR alarm_raised_by = %(folder)s)
RETURNING space;

-- foldlog.infrastructure.postgres.service_events.erasure.SELECT_NAMED
SELECT originator_version, state
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
   AND collections && %(collections)s::text[]
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
   AND collections && %(collections)s::text[]
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );

-- foldlog.infrastructure.postgres.service_events.erasure.SELECT_CHOSEN
SELECT originator_version, state, salt
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
   AND originator_version = ANY(%(seqs)s::bigint[])
 ORDER BY originator_version
 LIMIT (
       SELECT CASE
              WHEN event_bytes_max * %(limit)s::bigint <= %(bytes_max)s THEN %(limit)s::bigint
              ELSE (
                   SELECT count(*)
                     FROM (
                          SELECT sum(octet_length(state)) OVER (
                                     ORDER BY originator_version ROWS UNBOUNDED PRECEDING
                                 ) - octet_length(state) AS bytes_before
                            FROM events
                           WHERE originator_id = %(space)s
                             AND originator_version > %(after)s
                             AND originator_version <= %(through)s
   AND originator_version = ANY(%(seqs)s::bigint[])
                           ORDER BY originator_version
                           LIMIT %(limit)s
                          ) measured
                    WHERE bytes_before <= %(bytes_max)s
                   )
              END
         FROM spaces
        WHERE space = %(space)s
       );
