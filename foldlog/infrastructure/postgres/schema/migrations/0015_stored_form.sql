-- Large records in parts, and large values in the log only (decision 0045).

-- The parts of a row that are stored elsewhere: values in the log, and fields in earlier versions. NULL
-- if the row is whole.
ALTER TABLE records ADD COLUMN apart json;

ALTER TABLE versions
    ADD COLUMN apart json,
    ADD COLUMN writes json;  -- only of a record that is stored in parts

-- The rows that are there are whole, so the projectors of this version go on with them. A rebuild makes
-- other rows of the same records, so such a generation cannot be compared with one.
ALTER TABLE projections ADD COLUMN has_older_rows boolean NOT NULL DEFAULT false;

UPDATE projections
   SET fold_version = 3, has_older_rows = (position > 0)
 WHERE projection = 'master'
   AND fold_version = 2
   AND is_live;
