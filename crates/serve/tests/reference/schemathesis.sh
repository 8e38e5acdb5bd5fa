#!/usr/bin/env bash
# Sends what the OpenAPI document allows, and what it does not, to a running server: no status of 500 or
# above, and every answer as documented.
#     schemathesis.sh http://127.0.0.1:8080 [further arguments of `schemathesis run`]
# Needs the Python package `schemathesis`.
set -euo pipefail
checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
checks+=,response_headers_conformance,unsupported_method
# An answer without a limit of tokens may take minutes.
exec schemathesis run "$1/openapi.json" --checks "$checks" --request-timeout 300 "${@:2}"
