#!/usr/bin/env bash
# Runs once, when PostgreSQL starts on an empty volume: one database and one owner each for Prefect and MLflow.
# psql takes the passwords from the environment, so that no process list shows them.
set -euo pipefail

for name in prefect mlflow; do
    psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=name="$name" --username "$POSTGRES_USER" --dbname postgres <<SQL
\getenv password ${name^^}_DB_PASSWORD
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
