-- SPDX-License-Identifier: Apache-2.0
-- The audit trail's roles and schema. Run once as a superuser in the database that is to hold the trail, and again
-- after an upgrade. The database should hold nothing else: rights that every login has by default go.
--
--   createdb zt && psql --dbname zt --file roles.sql
--
-- None of the three roles can log in. Give each login that the agents use the roles that it needs, and no more. Each node
-- should have a login of its own: every row says which login inserted it, and no login can touch what another one does.
--
--   CREATE ROLE zt_worker_1 LOGIN PASSWORD '…' NOINHERIT CONNECTION LIMIT 8 IN ROLE zt_audit_writer;
--   CREATE ROLE zt_engine_1 LOGIN PASSWORD '…' NOINHERIT CONNECTION LIMIT 8 IN ROLE zt_audit_writer, zt_audit_reader;
--   CREATE ROLE zt_keeper LOGIN PASSWORD '…' NOINHERIT CONNECTION LIMIT 8 IN ROLE zt_audit_maintainer;
--
-- A login that inserts needs no other role where another one reads (`audit.readDsn`) or looks after the tables
-- (`audit.maintainDsn`).
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
    -- Temporary tables, tables in `public` and large objects: room on the disk that nobody would look for.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;
-- A question that adds up very much bounds itself to 1 GB of temporary files: from PostgreSQL 15 on, whose statement others
-- could not even read.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        EXECUTE 'GRANT SET ON PARAMETER temp_file_limit TO zt_audit_reader';
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'questions are not bounded to 1 GB of temporary files: a superuser alone may grant that';
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid), pg_catalog.lo_from_bytea(oid, bytea)
    FROM PUBLIC;

-- The maintainer owns the schema: the agent makes the tables in it, with the grants of the other two, when it first
-- connects in that role.
CREATE SCHEMA IF NOT EXISTS zt_audit AUTHORIZATION zt_audit_maintainer;
REVOKE ALL ON SCHEMA zt_audit FROM PUBLIC;
GRANT USAGE ON SCHEMA zt_audit TO zt_audit_writer, zt_audit_reader;

-- Locked by a maintainer that brings the tables up to date. Its owner alone can lock it so; an advisory lock could be held
-- by every login.
CREATE TABLE IF NOT EXISTS zt_audit.upkeep ();
ALTER TABLE zt_audit.upkeep OWNER TO zt_audit_maintainer;

-- Whoever may use the schema can begin a transaction that locks a table a little and never ends it, and the maintainer
-- could neither make nor drop a partition. So it may end such transactions, and no others: of a login that may write, is
-- no maintainer, and has held a lock on a table of the trail for longer than any batch takes. One that may read may hold
-- a reader's lock for as long as it reads.
CREATE OR REPLACE FUNCTION zt_audit.end_old_transactions(older interval) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))
    FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.xact_start < now() - older
      AND NOT r.rolsuper AND pg_has_role(r.oid, 'zt_audit_writer', 'MEMBER')
      AND NOT pg_has_role(r.oid, 'zt_audit_maintainer', 'MEMBER')
      AND EXISTS (
          SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
          WHERE l.pid = a.pid AND l.granted AND c.relnamespace = 'zt_audit'::regnamespace
            AND (l.mode <> 'AccessShareLock' OR NOT pg_has_role(r.oid, 'zt_audit_reader', 'MEMBER'))
      )
$$;
REVOKE ALL ON FUNCTION zt_audit.end_old_transactions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION zt_audit.end_old_transactions TO zt_audit_maintainer;
