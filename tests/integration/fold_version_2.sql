-- The statements by which services of fold version 2 read the master table. They must fail on the tables
-- of fold version 3.

-- foldlog.infrastructure.postgres.append.records_at_head.SELECT_RECORDS_AND_POSITION
SELECT p.position, collection, id, fields, is_deleted, seq, created_seq, last_modified, writes, deleted, touched_seq, touched_by, touched_seq_other
  FROM projections p
  LEFT JOIN LATERAL (
SELECT collection,
       id,
       CASE WHEN bytes <= %(bytes_max)s THEN fields END AS fields,
       is_deleted,
       seq,
       created_seq,
       last_modified,
       CASE WHEN bytes <= %(bytes_max)s THEN writes END AS writes,
       deleted,
       touched_seq,
       touched_by,
       touched_seq_other
  FROM (
       SELECT r.*,
              sum(octet_length(fields::text) + octet_length(writes::text)) OVER (
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

-- foldlog.infrastructure.postgres.master.conflicts.SELECT_CONFLICTS['all']
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
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
        SELECT seq, number, document
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

-- foldlog.infrastructure.postgres.master.diff.SELECT_DIFFERENT
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, place_seq, collection, id, fields, is_deleted, last_modified, seq, created_seq, fields_before, is_deleted_before, last_modified_before, seq_before,
        created_seq_before
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
               before.created_seq AS created_seq_before
          FROM unnest(
                   %(seqs)s::bigint[], %(collections)s::text[], %(ids)s::text[]
               ) AS touched (seq, collection, id)
         CROSS JOIN LATERAL (
               SELECT v.seq AS version_seq, v.collection, v.id, v.fields, v.is_deleted,
                      v.last_modified, v.state_seq AS seq, v.created_seq
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

               SELECT v.seq AS version_seq, v.collection, v.id, v.fields, v.is_deleted,
                      v.last_modified, v.state_seq AS seq, v.created_seq
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
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, first_seq
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
               SELECT v.seq AS version_seq, v.collection, v.id, v.fields, v.is_deleted,
                      v.last_modified, v.state_seq AS seq, v.created_seq
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
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT 1 AS number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq
          FROM (
               SELECT v.seq AS version_seq, v.collection, v.id, v.fields, v.is_deleted,
                      v.last_modified, v.state_seq AS seq, v.created_seq
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

-- foldlog.infrastructure.postgres.master.projection.SELECT_RECORDS
SELECT collection,
       id,
       CASE WHEN bytes <= %(bytes_max)s THEN fields END AS fields,
       is_deleted,
       seq,
       created_seq,
       last_modified,
       CASE WHEN bytes <= %(bytes_max)s THEN writes END AS writes,
       deleted,
       touched_seq,
       touched_by,
       touched_seq_other
  FROM (
       SELECT r.*,
              sum(octet_length(fields::text) + octet_length(writes::text)) OVER (
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
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq, writes, deleted, erased_seq
          FROM (
               SELECT *, sum(octet_length(fields::text) + octet_length(writes::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields) + pg_column_size(writes)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, fields, is_deleted, last_modified, seq, created_seq, writes, deleted,
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
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq
          FROM (
               SELECT *, sum(octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, fields, is_deleted, last_modified, seq, created_seq
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
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq
          FROM (
               SELECT *, sum(octet_length(fields::text)) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum(pg_column_size(fields)) OVER in_order AS stored_through
                        FROM (
        SELECT collection, id, fields, is_deleted, last_modified, seq, created_seq
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

-- foldlog.infrastructure.postgres.master.table.SELECT_ONE
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT 1 AS number_of_candidates, collection, id, fields, is_deleted, last_modified, seq, created_seq
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND collection = %(collection)s
           AND id = %(id)s
    ) page ON true
 WHERE s.space = %(space)s
 ORDER BY collection, id;

-- foldlog.infrastructure.postgres.master.versions.SELECT_VERSIONS['oldest']
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL (
        SELECT number_of_candidates, version, header, is_deleted, fields_before, fields
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
               here.fields
          FROM versions here
          JOIN events e
            ON e.originator_id = here.space AND e.originator_version = here.seq
          LEFT JOIN LATERAL (

               SELECT v.seq AS version_seq, v.collection, v.id, v.fields, v.is_deleted,
                      v.last_modified, v.state_seq AS seq, v.created_seq
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

-- foldlog.infrastructure.postgres.master.versions.SELECT_LOST['oldest']
SELECT s.log::text, s.head, p.position,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history AND p.fold_version = %(fold_version)s,
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
        SELECT seq, number, document
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
