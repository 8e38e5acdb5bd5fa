#!/usr/bin/env bash
# Makes the certificate for localhost, and its key, that the tests of HTTPS use: certificate.pem and key.pem.
set -euo pipefail
cd "$(dirname "$0")/../fixtures"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost \
    -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out certificate.pem
