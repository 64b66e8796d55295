-- Recordings that were asked for. One that is wished (closed_ms = 0) is the only one of its stream and vendor.
CREATE TABLE record (
    id TEXT NOT NULL PRIMARY KEY,
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    vendor TEXT NOT NULL,
    origin BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    end_ms BIGINT NOT NULL,
    closed_ms BIGINT NOT NULL,
    numbers BIGINT NOT NULL,
    state BIGINT NOT NULL,
    reason TEXT NOT NULL,
    state_ms BIGINT NOT NULL,
    begun_ms BIGINT NOT NULL,
    last_error TEXT NOT NULL
);
CREATE UNIQUE INDEX record_wished ON record (app, environment, stream, vendor) WHERE closed_ms = 0;
CREATE INDEX record_due ON record (end_ms) WHERE closed_ms = 0 AND end_ms > 0;
CREATE INDEX record_running ON record (state) WHERE state BETWEEN 1 AND 2;
CREATE INDEX record_closed ON record (closed_ms) WHERE closed_ms > 0;
CREATE INDEX record_app ON record (app, environment, created_ms);
CREATE INDEX record_stream ON record (app, environment, stream, created_ms);

-- Files. What searches see is state 2, and their indexes hold nothing else.
CREATE TABLE file (
    id TEXT NOT NULL PRIMARY KEY,
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    vendor TEXT NOT NULL,
    record TEXT NOT NULL,
    format TEXT NOT NULL,
    path TEXT NOT NULL,
    state BIGINT NOT NULL,
    interrupted BIGINT NOT NULL,
    begin_ms BIGINT NOT NULL,
    end_ms BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    size BIGINT NOT NULL,
    etag TEXT NOT NULL,
    about TEXT NOT NULL,
    name TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    expire_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX file_path ON file (path);
CREATE INDEX file_record ON file (record);
CREATE INDEX file_unready ON file (state, updated_ms) WHERE state <> 2;
CREATE INDEX file_expire ON file (expire_ms) WHERE state = 2 AND expire_ms > 0;
CREATE INDEX file_key ON file (app, environment, vendor, path) WHERE state = 2;
-- Each of these holds all that a search by it looks at.
CREATE INDEX file_created ON file (app, environment, vendor, created_ms, id, name) WHERE state = 2;
CREATE INDEX file_stream ON file (app, environment, vendor, stream, created_ms, id, name) WHERE state = 2;
CREATE INDEX file_name ON file (app, environment, vendor, name, created_ms, id) WHERE state = 2;

CREATE TABLE job (
    id TEXT NOT NULL PRIMARY KEY,
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    vendor TEXT NOT NULL,
    request TEXT NOT NULL,
    state BIGINT NOT NULL,
    progress BIGINT NOT NULL,
    file TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    ended_ms BIGINT NOT NULL
);
CREATE INDEX job_due ON job (state, created_ms);
