-- Events that are stepped over, and the `event-skipped` event that says so of each. Written in the
-- transaction of that event; the log has it all.
CREATE TABLE skipped (
    space  text   COLLATE "C" NOT NULL,
    seq    bigint NOT NULL,
    by_seq bigint NOT NULL,
    PRIMARY KEY (space, seq)
);
