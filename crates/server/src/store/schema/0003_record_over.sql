-- Recordings that were ended and do not say so yet: a few, whatever lies in the past.
CREATE INDEX record_over ON record (closed_ms) WHERE closed_ms > 0 AND state < 3;
