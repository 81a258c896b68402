-- Tokens that wait for their device: an admin has issued a code, or a device trades its earlier token.
-- The event of the token is written when the device has claimed it. Written under the lock of the
-- space, except for the INSERT of a code.
CREATE TABLE enrolments (
    space               text   COLLATE "C" NOT NULL,
    token               uuid   NOT NULL,  -- the id that the token gets
    code                bytea,            -- SHA-256 of the code; NULL in a trade
    traded              uuid,             -- the earlier token of the device; NULL with a code
    name                text,
    issued_at_ms        bigint NOT NULL,
    issued_by           text,
    expires_at_ms       bigint NOT NULL,  -- the code; a claim can be repeated afterwards
    token_expires_at_ms bigint,
    device              uuid,             -- the claim: NULL until a device has the token
    digest              bytea,
    PRIMARY KEY (space, token),
    CONSTRAINT enrolments_code UNIQUE (space, code),
    CONSTRAINT enrolments_traded UNIQUE (space, traded)
);

-- A claim is final. Otherwise a code that was used could be used for another device.
CREATE TRIGGER enrolments_are_claimed_once
    BEFORE UPDATE ON enrolments
    FOR EACH ROW WHEN (
        OLD.device IS NOT NULL
        OR (OLD.space, OLD.token, OLD.code, OLD.traded, OLD.name, OLD.issued_at_ms, OLD.issued_by,
            OLD.expires_at_ms, OLD.token_expires_at_ms)
           IS DISTINCT FROM
           (NEW.space, NEW.token, NEW.code, NEW.traded, NEW.name, NEW.issued_at_ms, NEW.issued_by,
            NEW.expires_at_ms, NEW.token_expires_at_ms)
    )
    EXECUTE FUNCTION refuse_access();

ALTER TABLE enrolments ENABLE ALWAYS TRIGGER enrolments_are_claimed_once;
