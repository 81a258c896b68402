-- One folder of last checkpoints signs the logs of a database, and one cosigns for other services.
CREATE TABLE signers (
    use           text        COLLATE "C" NOT NULL,
    folder        uuid        NOT NULL,
    key           text        COLLATE "C" NOT NULL,
    signs         boolean     NOT NULL,
    since         timestamptz NOT NULL DEFAULT now(),
    replaced_by   uuid,
    replaced_at   timestamptz,
    replaced_why  text,
    refused_why   text,
    refused_since timestamptz,
    PRIMARY KEY (folder, key)
);

CREATE UNIQUE INDEX signers_one ON signers (use) WHERE signs;

-- The folder whose signer raised the alarm; only this one clears it.
ALTER TABLE checkpoints ADD COLUMN alarm_raised_by uuid;
