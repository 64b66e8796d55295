-- Only BIGINT, DOUBLE PRECISION, TEXT and BLOB: what SQLite and PostgreSQL both have and read alike.
-- Times are Unix milliseconds; environment is 0 production, 1 test.

CREATE TABLE rule (
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    address TEXT NOT NULL,
    url TEXT NOT NULL,
    origin BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    retry_asked BIGINT NOT NULL,
    state BIGINT NOT NULL,
    reason BIGINT NOT NULL,
    state_ms BIGINT NOT NULL,
    retries BIGINT NOT NULL,
    next_retry_ms BIGINT NOT NULL,
    last_error TEXT NOT NULL,
    PRIMARY KEY (app, environment, stream, address)
);
CREATE INDEX rule_running ON rule (state) WHERE state <> 0;

CREATE TABLE forbid (
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (app, environment, stream)
);

CREATE TABLE stream (
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    seq BIGINT NOT NULL,
    sid TEXT NOT NULL,
    user_id TEXT NOT NULL,
    protocol TEXT NOT NULL,
    publisher TEXT NOT NULL,
    codec BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    closed_ms BIGINT NOT NULL,
    PRIMARY KEY (app, environment, stream, seq)
);
CREATE INDEX stream_closed ON stream (closed_ms);

CREATE TABLE sequence (
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    family TEXT NOT NULL,
    number BIGINT NOT NULL,
    fingerprint TEXT NOT NULL,
    reply TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (app, environment, stream, family)
);
CREATE INDEX sequence_at ON sequence (at_ms);

CREATE TABLE outbox (
    id BIGINT NOT NULL PRIMARY KEY,
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    event TEXT NOT NULL,
    stream TEXT NOT NULL,
    url TEXT NOT NULL,
    format BIGINT NOT NULL,
    body TEXT NOT NULL,
    state BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    last_status BIGINT NOT NULL,
    last_error TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX outbox_due ON outbox (state, due_ms);
CREATE INDEX outbox_line ON outbox (app, environment, stream, url, id) WHERE state = 0;
CREATE INDEX outbox_app ON outbox (app, environment, state, id);

-- The last number given out under a name: an id is never given twice, whatever is forgotten.
CREATE TABLE counter (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counter (name, value) VALUES ('outbox', 0);
