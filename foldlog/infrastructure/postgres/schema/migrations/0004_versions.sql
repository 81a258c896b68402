-- Every version of every record, and the conflict ledger by field and hand.

-- Every state that each record ever had: a row for each event that touched it, also one that lost
-- altogether. The last row up to a seq is the record as it was right after that seq.
CREATE TABLE versions (
    space         text    COLLATE "C" NOT NULL,
    generation    integer NOT NULL,
    collection    text    COLLATE "C" NOT NULL,
    id            text    COLLATE "C" NOT NULL,
    seq           bigint  NOT NULL,  -- of the event that touched it
    fields        json    NOT NULL,
    is_deleted    boolean NOT NULL,
    state_seq     bigint  NOT NULL,  -- the `seq` of the record: of the event that moved its state
    created_seq   bigint  NOT NULL,
    last_modified timestamptz NOT NULL,
    is_first      boolean NOT NULL,  -- before it there was no such record
    PRIMARY KEY (space, generation, collection, id, seq)
);

-- In which order they came to be: what a page of an early moment is read by, without the later ones.
CREATE INDEX versions_first ON versions (space, generation, collection, seq, id)
    WHERE is_first;

-- What has been folded has no versions, so its history is not answered until `foldlog rebuild` has
-- made it anew; the master table goes on meanwhile. Only this version's projectors take it on from
-- here: those of the last one know of no versions, and leave other fold versions alone.
ALTER TABLE projections ADD COLUMN has_history boolean NOT NULL DEFAULT true;

UPDATE projections
   SET has_history = (position = 0), fold_version = 2
 WHERE projection = 'master'
   AND fold_version = 1
   AND is_live;

ALTER TABLE conflicts
    ADD COLUMN field bytea,    -- its name in UTF-8, which may hold NUL
    ADD COLUMN lost_by uuid,
    ADD COLUMN won_by uuid;

DROP INDEX conflicts_by_record;

CREATE INDEX conflicts_by_record ON conflicts (space, generation, collection, id, seq, number);
