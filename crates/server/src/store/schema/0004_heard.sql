-- Whether a stream_create of the publish has been owed: who hears that it ends, or goes on, has heard that it began.
ALTER TABLE stream ADD COLUMN heard BIGINT NOT NULL DEFAULT 1;
