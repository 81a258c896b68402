-- Tokens: of each the SHA-256 of its secret, for one space ('' is every space). Written in the
-- transaction of the `token-granted` event; those of every space are of no log.
CREATE TABLE tokens (
    space          text   COLLATE "C" NOT NULL,
    token          uuid   NOT NULL,  -- its id; the same one may be granted for several spaces
    digest         bytea  NOT NULL,
    role           text   NOT NULL,
    device         uuid,
    name           text,
    granted_at_ms  bigint NOT NULL,
    granted_by     text,
    expires_at_ms  bigint,
    revoked_at_ms  bigint,
    revoked_by     text,
    revoked_reason text,
    PRIMARY KEY (space, token),
    CONSTRAINT tokens_digest UNIQUE (space, digest)
);

-- They are listed in the order in which they were granted.
CREATE INDEX tokens_granted ON tokens (space, granted_at_ms, token);

-- A device may be registered before it has pushed, and revoked.
ALTER TABLE devices
    ALTER COLUMN last_seen_ms DROP NOT NULL,
    ADD COLUMN registered_at_ms bigint,
    ADD COLUMN name text;
