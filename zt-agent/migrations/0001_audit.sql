-- SPDX-License-Identifier: Apache-2.0
-- The audit trail. Run in the role `zt_audit_maintainer`, which owns everything here.
--
-- Times are Unix nanoseconds: the hash chain covers them to the last digit, which `timestamptz` does not keep. The view
-- `trail` shows them as people read them.
--
-- Nobody who may insert is believed, and none can get in another's way:
--
-- * `login` is the login that inserted a row. The writer's role may not set it: its rights are for the other columns. It
--   is in every key, so that a row of one login neither takes the place of another's nor makes it wait.
-- * Counts are made from the rows that were inserted, by a trigger.
-- * What a row says is checked. A check that could fail because of the server's clock has a name that ends in
--   `_not_ahead`: such a record is sent again later. Every other one fails for what the record says, and forever. No check
--   lists words that a later version may add to. (A day that is about to be dropped has one more, `record_closed`, which
--   nothing passes: such a record is sent again later, too.)

-- The id of a shape, as `Shape::id` in `zt-agent/src/audit/postgres/shape.rs`: a UUIDv8 of a SHA-256 of all that it says. A
-- length before each text keeps `a`, `bc` and `ab`, `c` apart.
CREATE FUNCTION zt_audit.said(value text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN value IS NULL THEN '\xffffffffffffffff'::bytea
    ELSE int8send(octet_length(convert_to(value, 'UTF8'))::bigint) || convert_to(value, 'UTF8')
END;
CREATE FUNCTION zt_audit.shape_id(
    type text, source text, destination text, rule text, source_node text, destination_node text, cluster text,
    decision text, mode text, observer text, hook text, reason text, proof text,
    protocol smallint, port integer, enforced boolean, part smallint
) RETURNS uuid LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hash bytea := sha256(
        zt_audit.said(type) || zt_audit.said(source) || zt_audit.said(destination) || zt_audit.said(rule)
        || zt_audit.said(source_node) || zt_audit.said(destination_node) || zt_audit.said(cluster)
        || zt_audit.said(decision) || zt_audit.said(mode) || zt_audit.said(observer) || zt_audit.said(hook)
        || zt_audit.said(reason) || zt_audit.said(proof)
        || int4send(coalesce(protocol, -1)) || int4send(coalesce(port, -1))
        || int4send(coalesce(enforced::integer, -1)) || int4send(part));
BEGIN
    hash := set_byte(hash, 6, get_byte(hash, 6) & 15 | 128);
    hash := set_byte(hash, 8, get_byte(hash, 8) & 63 | 128);
    RETURN left(encode(hash, 'hex'), 32)::uuid;
END
$$;
-- A day from now, in Unix nanoseconds: no record is from later.
CREATE FUNCTION zt_audit.tomorrow() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN ((date_part('epoch', now()) + 86400) * 1e9::double precision)::bigint;

-- What repeats from record to record. Names sort by their bytes, whatever the database's locale: prefixes and ranges of
-- them are looked up in the indexes. A shape's id is a hash of what it says, so that a writer needs to read nothing; it is
-- kept for each day anew, so that it can go with the day's records.
CREATE TABLE zt_audit.shape (
    day integer NOT NULL CONSTRAINT shape_day CHECK (day >= 18262),
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
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    PRIMARY KEY (day, id, login),
    CONSTRAINT shape_not_ahead CHECK (day <= zt_audit.tomorrow() / 86400000000000),
    CONSTRAINT shape_id CHECK (id = zt_audit.shape_id(type, source, destination, rule, source_node, destination_node,
        cluster, decision, mode, observer, hook, reason, proof, protocol, port, enforced, part)),
    CONSTRAINT shape_numbers CHECK (protocol BETWEEN 0 AND 255 AND port BETWEEN 0 AND 65535 AND part BETWEEN 0 AND 2),
    -- A SPIFFE ID has at most 2048 bytes, and what is indexed little more.
    CONSTRAINT shape_lengths CHECK (octet_length(source) <= 2048 AND octet_length(destination) <= 2048
        AND octet_length(rule) <= 1024 AND octet_length(source_node) <= 1024 AND octet_length(destination_node) <= 1024
        AND octet_length(cluster) <= 1024 AND octet_length(type) <= 64 AND octet_length(decision) <= 64
        AND octet_length(mode) <= 64 AND octet_length(observer) <= 64 AND octet_length(hook) <= 64
        AND octet_length(reason) <= 64 AND octet_length(proof) <= 64),
    -- Connections are counted by decisions alone, and those are whole.
    CONSTRAINT shape_whole CHECK (CASE
        WHEN type = 'decision' THEN num_nulls(source, destination, protocol, port, decision, enforced, mode, observer,
            hook, reason, proof) = 0 AND decision IN ('ALLOW', 'DENY')
        WHEN type IN ('policy_change', 'mode_change', 'identity_change') THEN part = 2 AND source_node IS NOT NULL
        ELSE part = 2
    END)
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
    time bigint NOT NULL CONSTRAINT record_time CHECK (time >= 1577836800000000000),
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
    -- What a change of policy or mode changed, in JSON: text as it was hashed, whose length is known without reading it.
    detail text,
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    -- Both the order of every answer and what makes inserting twice inserting once.
    PRIMARY KEY (time, id, login),
    CONSTRAINT record_not_ahead CHECK (time <= zt_audit.tomorrow()),
    CONSTRAINT record_numbers CHECK (seq >= 1 AND octet_length(hash) = 32 AND revision >= 0 AND latency >= 0
        AND count BETWEEN 1 AND 4294967295 AND source_port BETWEEN 0 AND 65535 AND pid BETWEEN 0 AND 4294967295),
    -- Of a host, not of a network.
    CONSTRAINT record_addresses CHECK (
        masklen(source_address) = CASE family(source_address) WHEN 4 THEN 32 ELSE 128 END
        AND masklen(destination_address) = CASE family(destination_address) WHEN 4 THEN 32 ELSE 128 END),
    CONSTRAINT record_lengths CHECK (octet_length(comm) <= 256 AND octet_length(source_pod) <= 1024
        AND octet_length(destination_pod) <= 1024 AND octet_length(caller) <= 4096 AND octet_length(detail) <= 8388608),
    CONSTRAINT record_detail CHECK (detail IS NULL OR detail::json IS NOT NULL)
) PARTITION BY RANGE (time);
CREATE INDEX record_shape ON zt_audit.record (shape, time);
-- What no partition was made for in time; the maintainer moves it where it belongs.
CREATE TABLE zt_audit.record_other PARTITION OF zt_audit.record DEFAULT;

-- What a writer shipped at once, in the same transaction as its records.
CREATE TABLE zt_audit.batch (
    writer uuid NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    -- Records before this batch that its writer had no room to keep until they were shipped.
    dropped bigint NOT NULL,
    min_time bigint NOT NULL,
    max_time bigint NOT NULL,
    received timestamptz NOT NULL DEFAULT now(),
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    PRIMARY KEY (writer, first_seq, login),
    CONSTRAINT batch_numbers CHECK (first_seq >= 1 AND last_seq >= first_seq AND dropped >= 0 AND min_time <= max_time),
    CONSTRAINT batch_not_ahead CHECK (max_time <= zt_audit.tomorrow())
);
CREATE INDEX batch_max_time ON zt_audit.batch (max_time);

-- Checkpoints and the keys that signed them, as their writers made them. `digest` stands for the text in the key: with a
-- second signature a text is longer than an entry of an index may be.
CREATE TABLE zt_audit.checkpoint (
    writer uuid NOT NULL,
    seq bigint NOT NULL,
    time bigint NOT NULL,
    text text COLLATE "C" NOT NULL CONSTRAINT checkpoint_length CHECK (octet_length(text) <= 16384),
    digest uuid GENERATED ALWAYS AS (md5(text)::uuid) STORED,
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    PRIMARY KEY (writer, seq, time, digest, login)
);
CREATE TABLE zt_audit.signing_key (
    created bigint NOT NULL,
    text text COLLATE "C" NOT NULL CONSTRAINT signing_key_length CHECK (octet_length(text) <= 16384),
    digest uuid GENERATED ALWAYS AS (md5(text)::uuid) STORED,
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    PRIMARY KEY (created, digest, login)
);

-- How often each shape was recorded by each login in each hour since 1970: the graph, and where to look for records.
CREATE TABLE zt_audit.bucket (
    shape uuid NOT NULL,
    hour bigint NOT NULL,
    login text COLLATE "C" NOT NULL,
    records bigint NOT NULL,
    connections bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    PRIMARY KEY (hour, shape, login)
) WITH (fillfactor = 70);
CREATE INDEX bucket_shape ON zt_audit.bucket (shape, hour);

-- Counts the records that were inserted. It runs with the rights of its owner: who may insert records may count them, and
-- nothing else. A record of which one cannot find what it says is refused.
CREATE FUNCTION zt_audit.count_records() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO zt_audit.bucket AS b (shape, hour, login, records, connections, first_seen, last_seen)
    SELECT n.shape, n.time / 3600000000000, n.login, count(*), sum(n.count), min(n.time), max(n.time)
    FROM inserted n
    GROUP BY 1, 2, 3
    -- One order for all connections of a login, so that none waits for another in a circle.
    ORDER BY 2, 1, 3
    -- A sum that would run over stays at the most that there is.
    ON CONFLICT (hour, shape, login) DO UPDATE SET
        records = least(b.records::numeric + excluded.records, 9223372036854775807)::bigint,
        connections = least(b.connections::numeric + excluded.connections, 9223372036854775807)::bigint,
        first_seen = least(b.first_seen, excluded.first_seen),
        last_seen = greatest(b.last_seen, excluded.last_seen);
    IF EXISTS (
        SELECT FROM (SELECT DISTINCT (i.time / 86400000000000)::integer AS day, i.shape, i.login FROM inserted i) n
        WHERE NOT EXISTS (SELECT FROM zt_audit.shape s WHERE s.day = n.day AND s.id = n.shape AND s.login = n.login)
    ) THEN
        RAISE foreign_key_violation USING MESSAGE = 'a record has a shape that its login has not inserted for its day';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_records AFTER INSERT ON zt_audit.record REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION zt_audit.count_records();

-- For people with a prompt.
CREATE VIEW zt_audit.trail AS
SELECT to_timestamp(r.time / 1e9) AS at, r.id, s.type, s.decision, s.enforced, s.source, s.destination, s.protocol,
       s.port, s.rule, s.reason, s.mode, s.hook, s.observer, s.proof, s.source_node, s.destination_node, s.cluster,
       r.revision, r.latency, r.count, r.source_address, r.source_port, r.destination_address, r.pid, r.comm,
       r.source_pod, r.destination_pod, r.caller, r.detail, r.login, r.writer, r.seq, r.hash, r.time
FROM zt_audit.record r
LEFT JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape AND s.login = r.login;

REVOKE ALL ON FUNCTION zt_audit.said, zt_audit.shape_id, zt_audit.tomorrow, zt_audit.count_records FROM PUBLIC;
-- The checks call them as who inserts.
GRANT EXECUTE ON FUNCTION zt_audit.said, zt_audit.shape_id, zt_audit.tomorrow TO zt_audit_writer;
GRANT INSERT (day, id, type, source, destination, protocol, port, rule, source_node, destination_node, cluster, decision,
    enforced, mode, observer, hook, reason, proof, part) ON zt_audit.shape TO zt_audit_writer;
GRANT INSERT (time, id, shape, writer, seq, hash, revision, latency, count, source_port, pid, source_address,
    destination_address, comm, source_pod, destination_pod, caller, detail) ON zt_audit.record TO zt_audit_writer;
GRANT INSERT (writer, first_seq, last_seq, dropped, min_time, max_time) ON zt_audit.batch TO zt_audit_writer;
GRANT INSERT (writer, seq, time, text) ON zt_audit.checkpoint TO zt_audit_writer;
GRANT INSERT (created, text) ON zt_audit.signing_key TO zt_audit_writer;
GRANT SELECT ON zt_audit.record, zt_audit.shape, zt_audit.batch, zt_audit.bucket, zt_audit.checkpoint, zt_audit.signing_key,
    zt_audit.trail TO zt_audit_reader;
