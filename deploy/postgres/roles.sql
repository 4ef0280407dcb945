-- SPDX-License-Identifier: Apache-2.0
-- The audit trail's roles and schema. Run once as a superuser in the database that is to hold the trail, and again
-- after an upgrade if you like: it changes nothing that is there.
--
--   createdb zt && psql --dbname zt --file roles.sql
--
-- None of the three roles can log in. Give each login that the agents use the roles that it needs, and no more:
--
--   CREATE ROLE zt_node LOGIN PASSWORD '…' NOINHERIT IN ROLE zt_audit_writer;
--   CREATE ROLE zt_engine LOGIN PASSWORD '…' NOINHERIT IN ROLE zt_audit_writer, zt_audit_reader;
--   CREATE ROLE zt_keeper LOGIN PASSWORD '…' NOINHERIT IN ROLE zt_audit_maintainer;
--
-- Every connection of an agent takes exactly one of the roles when it is opened, whatever else its login may do.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['zt_audit_writer', 'zt_audit_reader', 'zt_audit_maintainer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE', wanted);
        END IF;
    END LOOP;
END
$$;

-- The maintainer owns the schema: the agent makes the tables in it, with the grants of the other two, when it first
-- connects in that role.
CREATE SCHEMA IF NOT EXISTS zt_audit AUTHORIZATION zt_audit_maintainer;
REVOKE ALL ON SCHEMA zt_audit FROM PUBLIC;
GRANT USAGE ON SCHEMA zt_audit TO zt_audit_writer, zt_audit_reader;
