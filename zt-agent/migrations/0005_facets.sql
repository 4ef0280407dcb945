-- SPDX-License-Identifier: Apache-2.0
-- What shapes say of few words: the type, the decision, whether it was enforced, the port and the policy. There are few
-- different ones of these, however many parties there are. What is asked for is looked up here first: two words that are
-- frequent and never come together are found to have no answer without a look at the shapes, and those of two that come
-- together rarely are found at once.

-- The id of a facet. Words in quotes are told apart however they are written. Who made two facets of one id would hide what
-- he inserted himself, and of others nothing.
ALTER TABLE zt_audit.shape ADD COLUMN facet uuid NOT NULL GENERATED ALWAYS AS (md5(
    quote_literal(type) || coalesce(quote_literal(decision), '-') || coalesce(enforced::text, '-') || ' '
    || coalesce(port::text, '-') || coalesce(quote_literal(split_part(rule, '/', 1)), '-')
)::uuid) STORED;
CREATE INDEX shape_facet ON zt_audit.shape (facet, day);
-- What this one found, that one finds; the others are for words with which very many facets come.
DROP INDEX zt_audit.shape_port;

-- Each that some shape has, once for each login that inserted it. The login is in the key for the reason that it is in every
-- other.
CREATE TABLE zt_audit.facet (
    id uuid NOT NULL,
    type text NOT NULL,
    decision text,
    enforced boolean,
    port integer,
    policy text COLLATE "C",
    login text COLLATE "C" NOT NULL,
    PRIMARY KEY (id, login)
);
CREATE INDEX facet_port ON zt_audit.facet (port);
CREATE INDEX facet_policy ON zt_audit.facet (policy);
CREATE INDEX facet_decision ON zt_audit.facet (decision, enforced);
CREATE INDEX facet_type ON zt_audit.facet (type);

-- Notes the facets of new shapes, with the rights of its owner. The maintainer forgets those that no shape has any more, as it
-- forgets names.
CREATE FUNCTION zt_audit.note_facets() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO zt_audit.facet (id, type, decision, enforced, port, policy, login)
    SELECT DISTINCT ON (i.facet, i.login) i.facet, i.type, i.decision, i.enforced, i.port, split_part(i.rule, '/', 1), i.login
    FROM inserted i
    -- One order for all connections of a login, so that none waits for another in a circle.
    ORDER BY i.facet, i.login
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_facets AFTER INSERT ON zt_audit.shape REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION zt_audit.note_facets();

-- Whoever inserts has waited since the column was added.
INSERT INTO zt_audit.facet (id, type, decision, enforced, port, policy, login)
SELECT DISTINCT ON (facet, login) facet, type, decision, enforced, port, split_part(rule, '/', 1), login FROM zt_audit.shape;

REVOKE ALL ON FUNCTION zt_audit.note_facets FROM PUBLIC;
GRANT SELECT ON zt_audit.facet TO zt_audit_reader;
