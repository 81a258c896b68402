-- Large records in parts, and large values in the log only (decision 0051).

-- What a row leaves out, and where it is: values in the log, and fields in earlier versions. NULL if the
-- row is whole. A service of an older version that still runs would take such a row for the whole
-- record. So the columns have new names, and its statements fail.
ALTER TABLE records RENAME COLUMN fields TO own_fields;
ALTER TABLE records ADD COLUMN apart json;

ALTER TABLE versions RENAME COLUMN fields TO own_fields;
ALTER TABLE versions
    ADD COLUMN apart json,
    ADD COLUMN own_writes json;  -- only of a record that is stored in parts

ALTER TABLE conflicts RENAME COLUMN document TO entry;

-- From PostgreSQL 18 on, the constraints NOT NULL have names, which come from those of the columns.
ALTER TABLE records ALTER COLUMN own_fields DROP NOT NULL;
ALTER TABLE records ALTER COLUMN own_fields SET NOT NULL;
ALTER TABLE versions ALTER COLUMN own_fields DROP NOT NULL;
ALTER TABLE versions ALTER COLUMN own_fields SET NOT NULL;
ALTER TABLE conflicts ALTER COLUMN entry DROP NOT NULL;
ALTER TABLE conflicts ALTER COLUMN entry SET NOT NULL;

-- The rows that are there are whole, so the projectors of this version go on with them. A rebuild makes
-- other rows of the same records, so such a generation cannot be compared with one.
ALTER TABLE projections ADD COLUMN has_older_rows boolean NOT NULL DEFAULT false;

UPDATE projections
   SET fold_version = 3, has_older_rows = (position > 0)
 WHERE projection = 'master'
   AND fold_version = 2
   AND is_live;
