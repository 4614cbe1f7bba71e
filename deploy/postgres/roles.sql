-- The roles of the ledger, and everyone's password. Run at each start of the fleet: what is so
-- already stays so, a password that was changed in the environment is changed here.
--
--   prefmill         owns the ledger: the fleet. No superuser: it runs no programs, reads no files.
--   prefmill_reader  reads it: metrics
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SET log_min_error_statement = panic; -- a statement that fails is not logged: passwords stand in them
\getenv postgres POSTGRES_PASSWORD
\getenv ledger PREFMILL_LEDGER_PASSWORD
\getenv reader PREFMILL_LEDGER_READER_PASSWORD

SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['prefmill', 'prefmill_reader']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER ROLE prefmill LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'ledger';
ALTER ROLE prefmill_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'reader';
ALTER ROLE postgres PASSWORD :'postgres';

SELECT current_database() AS database
\gset
ALTER DATABASE :"database" OWNER TO prefmill;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO prefmill_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO prefmill_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE prefmill IN SCHEMA public GRANT SELECT ON TABLES TO prefmill_reader;
