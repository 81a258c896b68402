-- A log with missing events is an alarm of its space: it refuses appends and signatures.
ALTER TABLE spaces
    ADD COLUMN alarm       text,
    ADD COLUMN alarm_since timestamptz;

CREATE INDEX spaces_alarm ON spaces (space) WHERE alarm IS NOT NULL;

-- One checkpoint folder signs a log, and only the folder that raised an alarm may end it.
ALTER TABLE checkpoints
    ADD COLUMN signer   uuid,
    ADD COLUMN alarm_by uuid;

-- The last checkpoint of each foreign log that this service has cosigned as a witness.
CREATE TABLE witnessed (
    origin     text   COLLATE "C" PRIMARY KEY,
    folder     uuid   NOT NULL,
    size       bigint NOT NULL,
    checkpoint text   NOT NULL
);
