-- The tree over each log, and the checkpoints that are signed of it.

CREATE TABLE tiles (
    space      text    COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    level      integer NOT NULL,
    number     bigint  NOT NULL,
    hashes     bytea   NOT NULL,
    PRIMARY KEY (space, generation, level, number)
) WITH (fillfactor = 70);

ALTER TABLE tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

CREATE TABLE checkpoints (
    space        text        COLLATE "C" PRIMARY KEY,
    log          uuid,
    size         bigint      NOT NULL DEFAULT 0,
    note         bytea,
    signed_at    timestamptz,
    alarm        text,
    alarm_detail text,
    alarm_since  timestamptz
);

INSERT INTO projections (space, projection, generation, is_live, fold_version)
SELECT space, 'proofs', 1, true, 1
  FROM spaces;
