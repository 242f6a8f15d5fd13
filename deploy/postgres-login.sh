#!/bin/sh
# Runs once, on an empty data folder: the login and the database of the service. The login is no superuser; it owns
# its database and may create roles, which the first migration does.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password PALIMPSEST_DB_PASSWORD
CREATE ROLE palimpsest LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE palimpsest OWNER palimpsest TEMPLATE template0 ENCODING 'UTF8'
  LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8';
SQL
