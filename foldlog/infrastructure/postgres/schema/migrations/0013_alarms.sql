-- A log with missing events is an alarm of its space: it refuses appends and signatures.
ALTER TABLE spaces
    ADD COLUMN alarm       text,
    ADD COLUMN alarm_since timestamptz;

CREATE INDEX spaces_alarm ON spaces (space) WHERE alarm IS NOT NULL;
