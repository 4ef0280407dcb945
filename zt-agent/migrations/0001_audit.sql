-- SPDX-License-Identifier: Apache-2.0
-- The audit trail. Run in the role `zt_audit_maintainer`, which owns everything here.
--
-- Times are Unix nanoseconds: the hash chain covers them to the last digit, which `timestamptz` does not keep. The view
-- `trail` shows them as people read them.

-- What repeats from record to record. Names sort by their bytes, whatever the database's locale: prefixes and ranges of
-- them are looked up in the indexes. A shape's id is a hash of what it says, so that a writer needs to read nothing; it is
-- kept for each day anew, so that it can go with the day's records.
CREATE TABLE zt_audit.shape (
    day integer NOT NULL,
    id uuid NOT NULL,
    type text NOT NULL,
    source text COLLATE "C",
    destination text COLLATE "C",
    protocol smallint,
    port integer,
    rule text COLLATE "C",
    source_node text COLLATE "C",
    destination_node text COLLATE "C",
    cluster text NOT NULL,
    decision text,
    enforced boolean,
    mode text,
    observer text,
    hook text,
    reason text,
    proof text,
    part smallint NOT NULL,
    PRIMARY KEY (day, id)
);
CREATE INDEX shape_source ON zt_audit.shape (source, day);
CREATE INDEX shape_destination ON zt_audit.shape (destination, day);
CREATE INDEX shape_rule ON zt_audit.shape (rule, day);
CREATE INDEX shape_port ON zt_audit.shape (port, day);
CREATE INDEX shape_source_node ON zt_audit.shape (source_node, day);
CREATE INDEX shape_destination_node ON zt_audit.shape (destination_node, day);
CREATE INDEX shape_decision ON zt_audit.shape (decision, enforced, day);
CREATE INDEX shape_type ON zt_audit.shape (type, day);

-- The records, a partition a day. Each is a row of the writer's chain.
CREATE TABLE zt_audit.record (
    time bigint NOT NULL,
    id uuid NOT NULL,
    shape uuid NOT NULL,
    writer uuid NOT NULL,
    seq bigint NOT NULL,
    hash bytea,
    revision bigint NOT NULL,
    latency bigint NOT NULL,
    count bigint NOT NULL,
    source_port integer,
    pid bigint,
    source_address inet,
    destination_address inet,
    comm text,
    source_pod text,
    destination_pod text,
    caller text,
    -- What a change of policy or mode changed: text as it was hashed, which `jsonb` would rewrite.
    detail json,
    -- Both the order of every answer and what makes inserting twice inserting once.
    PRIMARY KEY (time, id)
) PARTITION BY RANGE (time);
CREATE INDEX record_shape ON zt_audit.record (shape, time);
-- What no partition was made for in time; the maintainer moves it where it belongs.
CREATE TABLE zt_audit.record_other PARTITION OF zt_audit.record DEFAULT;

-- What a writer shipped at once, in the same transaction as its records: who ships it again finds it here and counts
-- nothing twice. The arrays are what `count_batch` adds to `bucket`.
CREATE TABLE zt_audit.batch (
    writer uuid NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    -- Records before this batch that its writer had no room to keep until they were shipped.
    dropped bigint NOT NULL,
    min_time bigint NOT NULL,
    max_time bigint NOT NULL,
    received timestamptz NOT NULL DEFAULT now(),
    shapes uuid[] NOT NULL,
    hours bigint[] NOT NULL,
    records bigint[] NOT NULL,
    connections bigint[] NOT NULL,
    first_seen bigint[] NOT NULL,
    last_seen bigint[] NOT NULL,
    PRIMARY KEY (writer, first_seq)
);
CREATE INDEX batch_max_time ON zt_audit.batch (max_time);

-- Checkpoints and the keys that signed them, as their writers made them. What is in the key of a table is all of it, so
-- that nobody can take another's place.
CREATE TABLE zt_audit.checkpoint (
    writer uuid NOT NULL,
    seq bigint NOT NULL,
    time bigint NOT NULL,
    text text COLLATE "C" NOT NULL,
    PRIMARY KEY (writer, seq, time, text)
);
CREATE TABLE zt_audit.signing_key (
    created bigint NOT NULL,
    text text COLLATE "C" NOT NULL,
    PRIMARY KEY (created, text)
);

-- How often each shape was recorded in each hour since 1970: the graph, and where to look for records.
CREATE TABLE zt_audit.bucket (
    shape uuid NOT NULL,
    hour bigint NOT NULL,
    records bigint NOT NULL,
    connections bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    PRIMARY KEY (hour, shape)
) WITH (fillfactor = 70);
CREATE INDEX bucket_shape ON zt_audit.bucket (shape, hour);

-- Adds a batch up. It runs with the rights of its owner: who may insert a batch may count it, and nothing else.
CREATE FUNCTION zt_audit.count_batch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO zt_audit.bucket AS b (shape, hour, records, connections, first_seen, last_seen)
    SELECT n.shape, n.hour, n.records, n.connections, n.first_seen, n.last_seen
    FROM unnest(NEW.shapes, NEW.hours, NEW.records, NEW.connections, NEW.first_seen, NEW.last_seen)
        AS n (shape, hour, records, connections, first_seen, last_seen)
    -- One order for every writer, so that none waits for another in a circle.
    ORDER BY n.hour, n.shape
    ON CONFLICT (hour, shape) DO UPDATE SET
        records = b.records + excluded.records,
        connections = b.connections + excluded.connections,
        first_seen = least(b.first_seen, excluded.first_seen),
        last_seen = greatest(b.last_seen, excluded.last_seen);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION zt_audit.count_batch() FROM PUBLIC;
CREATE TRIGGER count_batch AFTER INSERT ON zt_audit.batch FOR EACH ROW EXECUTE FUNCTION zt_audit.count_batch();

-- For people with a prompt.
CREATE VIEW zt_audit.trail AS
SELECT to_timestamp(r.time / 1e9) AS at, r.id, s.type, s.decision, s.enforced, s.source, s.destination, s.protocol,
       s.port, s.rule, s.reason, s.mode, s.hook, s.observer, s.proof, s.source_node, s.destination_node, s.cluster,
       r.revision, r.latency, r.count, r.source_address, r.source_port, r.destination_address, r.pid, r.comm,
       r.source_pod, r.destination_pod, r.caller, r.detail, r.writer, r.seq, r.hash, r.time
FROM zt_audit.record r JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape;

GRANT INSERT ON zt_audit.record, zt_audit.shape, zt_audit.batch, zt_audit.checkpoint, zt_audit.signing_key TO zt_audit_writer;
GRANT SELECT ON zt_audit.record, zt_audit.shape, zt_audit.batch, zt_audit.bucket, zt_audit.checkpoint, zt_audit.signing_key,
    zt_audit.trail TO zt_audit_reader;
