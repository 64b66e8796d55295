-- Relays that were told of as running and whose rules are gone, until it is told that they have ended.
CREATE TABLE leaving (
    app BIGINT NOT NULL,
    environment BIGINT NOT NULL,
    stream TEXT NOT NULL,
    address TEXT NOT NULL,
    url TEXT NOT NULL,
    PRIMARY KEY (app, environment, stream, address)
);
