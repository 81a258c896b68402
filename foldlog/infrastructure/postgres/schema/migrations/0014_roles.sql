-- A fault of the database that keeps a projection from going on, such as a full disk. It never halts
-- the projection, because no event is its cause.
ALTER TABLE projections
    ADD COLUMN failing_why   text,
    ADD COLUMN failing_since timestamptz;

-- For the alarms of all spaces. Both are almost empty.
CREATE INDEX projections_alarms ON projections (space)
    WHERE stopped_at IS NOT NULL OR failing_why IS NOT NULL;
CREATE INDEX checkpoints_alarms ON checkpoints (space) WHERE alarm IS NOT NULL;
