-- SPDX-License-Identifier: Apache-2.0
-- Every SPIFFE ID that some shape names, once for each login that inserted it: what a pattern is compared with. Finding the
-- different ones in the shapes takes a look for each. The login is in the key for the reason that it is in every other.
CREATE TABLE zt_audit.name (
    name text COLLATE "C" NOT NULL,
    login text COLLATE "C" NOT NULL,
    PRIMARY KEY (name, login)
);

-- Notes the names of new shapes, with the rights of its owner. The maintainer forgets those that no shape has any more, and
-- keeps whoever inserts waiting meanwhile: none is forgotten that comes again at that moment.
CREATE FUNCTION zt_audit.note_names() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO zt_audit.name (name, login)
    SELECT DISTINCT party.name, i.login
    FROM inserted i CROSS JOIN LATERAL (VALUES (i.source), (i.destination)) party (name)
    WHERE party.name >= 'spiffe://' AND party.name < 'spiffe:/0'
    -- One order for all connections of a login, so that none waits for another in a circle.
    ORDER BY party.name, i.login
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_names AFTER INSERT ON zt_audit.shape REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION zt_audit.note_names();

-- Whoever inserts waits for this, and what he inserts then is noted.
LOCK TABLE zt_audit.shape IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO zt_audit.name (name, login)
SELECT source, login FROM zt_audit.shape WHERE source >= 'spiffe://' AND source < 'spiffe:/0'
UNION
SELECT destination, login FROM zt_audit.shape WHERE destination >= 'spiffe://' AND destination < 'spiffe:/0';

REVOKE ALL ON FUNCTION zt_audit.note_names FROM PUBLIC;
GRANT SELECT ON zt_audit.name TO zt_audit_reader;
