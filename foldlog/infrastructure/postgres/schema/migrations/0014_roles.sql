-- A fault of the database that keeps a projection from going on, such as a full disk. It never halts
-- the projection, because no event is its cause.
ALTER TABLE projections
    ADD COLUMN failing_why   text,
    ADD COLUMN failing_since timestamptz;
