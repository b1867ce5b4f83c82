#!/bin/bash
# Run once by PostgreSQL's image, while its volume is empty: a role for us and one for MLflow, and their databases, which
# nobody else may enter. The ledger of the control plane is out of MLflow's reach.
set -euo pipefail
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set larder `cat /run/secrets/larder_db_password`
\set mlflow `cat /run/secrets/mlflow_db_password`
CREATE ROLE larder LOGIN PASSWORD :'larder';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE larder OWNER larder;
CREATE DATABASE feast OWNER larder;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE larder, feast, mlflow, postgres FROM PUBLIC;
SQL
