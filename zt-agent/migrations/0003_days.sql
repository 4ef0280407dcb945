-- SPDX-License-Identifier: Apache-2.0
-- The counts of whole days, so that a graph of a year adds up days and not hours. The maintainer adds up the hours of a day
-- that is over and marks it; what comes for it later the trigger counts in both.
CREATE TABLE zt_audit.bucket_day (
    shape uuid NOT NULL,
    day integer NOT NULL,
    login text COLLATE "C" NOT NULL,
    connections bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    PRIMARY KEY (day, shape, login)
);
-- The days that are added up.
CREATE TABLE zt_audit.whole_day (
    day integer PRIMARY KEY
);

-- What a graph of one namespace is about.
CREATE INDEX shape_source_namespace ON zt_audit.shape (split_part(source, '/', 5), day) WHERE source LIKE 'spiffe://%';
CREATE INDEX shape_destination_namespace ON zt_audit.shape (split_part(destination, '/', 5), day)
    WHERE destination LIKE 'spiffe://%';

-- As before, in one look at what was inserted, and by the day where that is added up. The joins are those of few rows with
-- an index, however large the tables were when the plan was made.
CREATE OR REPLACE FUNCTION zt_audit.count_records() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    missing boolean;
BEGIN
    -- A transaction that sees the tables as they were when it began would not see that a day has been added up since. In
    -- any other each statement sees what was committed before it; and who adds up a day waits for whoever inserts into it.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE feature_not_supported USING MESSAGE = 'records are inserted in transactions that are READ COMMITTED';
    END IF;
    WITH counted AS MATERIALIZED (
        SELECT n.shape, n.time / 3600000000000 AS hour, n.login, count(*) AS records, sum(n.count)::bigint AS connections,
               min(n.time) AS first_seen, max(n.time) AS last_seen
        FROM inserted n
        GROUP BY 1, 2, 3
    ), hours AS (
        INSERT INTO zt_audit.bucket AS b (shape, hour, login, records, connections, first_seen, last_seen)
        SELECT * FROM counted c
        -- One order for all connections of a login, so that none waits for another in a circle.
        ORDER BY c.hour, c.shape, c.login
        -- A sum that would run over stays at the most that there is.
        ON CONFLICT (hour, shape, login) DO UPDATE SET
            records = CASE WHEN b.records > 9223372036854775807 - excluded.records THEN 9223372036854775807
                           ELSE b.records + excluded.records END,
            connections = CASE WHEN b.connections > 9223372036854775807 - excluded.connections THEN 9223372036854775807
                               ELSE b.connections + excluded.connections END,
            first_seen = least(b.first_seen, excluded.first_seen),
            last_seen = greatest(b.last_seen, excluded.last_seen)
    ), days AS (
        INSERT INTO zt_audit.bucket_day AS b (shape, day, login, connections, first_seen, last_seen)
        SELECT c.shape, w.day, c.login, least(sum(c.connections), 9223372036854775807)::bigint, min(c.first_seen),
               max(c.last_seen)
        FROM counted c JOIN zt_audit.whole_day w ON w.day = (c.hour / 24)::integer
        GROUP BY 1, 2, 3
        ORDER BY 2, 1, 3
        ON CONFLICT (day, shape, login) DO UPDATE SET
            connections = CASE WHEN b.connections > 9223372036854775807 - excluded.connections THEN 9223372036854775807
                               ELSE b.connections + excluded.connections END,
            first_seen = least(b.first_seen, excluded.first_seen),
            last_seen = greatest(b.last_seen, excluded.last_seen)
    )
    SELECT EXISTS (
        SELECT FROM counted c WHERE NOT EXISTS (
            SELECT FROM zt_audit.shape s WHERE s.day = (c.hour / 24)::integer AND s.id = c.shape AND s.login = c.login
        )
    ) INTO missing;
    IF missing THEN
        RAISE foreign_key_violation USING MESSAGE = 'a record has a shape that its login has not inserted for its day';
    END IF;
    RETURN NULL;
END
$$;

GRANT SELECT ON zt_audit.bucket_day, zt_audit.whole_day TO zt_audit_reader;
