-- How large an event of a space can be, so that a page of small ones need not add up lengths.

ALTER TABLE spaces ADD COLUMN event_bytes_max bigint NOT NULL DEFAULT 0;

UPDATE spaces
   SET event_bytes_max = (
           SELECT coalesce(max(octet_length(state)), 0)
             FROM events
            WHERE originator_id = space
       );
