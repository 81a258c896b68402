-- Collections that are defined: each version of each schema. Written in the transaction of the
-- `collection-defined` event that it is of, because pushes are decided by it; the log has it all.
CREATE TABLE collections (
    space      text    COLLATE "C" NOT NULL,
    collection text    COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    seq        bigint  NOT NULL,  -- of the event
    digest     text    NOT NULL,  -- of the schema; compiled ones are known by it
    schema     json    NOT NULL,
    defined_at text    NOT NULL,  -- when the event was received
    defined_by text,
    is_forced  boolean NOT NULL,
    PRIMARY KEY (space, collection, version)
);
