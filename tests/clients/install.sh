#!/usr/bin/env bash
# Installs the client libraries of other projects for `make test-clients`, in an environment of their own.
# Usage: tests/clients/install.sh VENV
set -euo pipefail
cd "$(dirname "$0")/../.."
peers=$1/clients
if ! command -v npm >/dev/null; then
    echo "npm is missing; on Debian: apt-get install npm" >&2
    exit 1
fi
[ -x "$peers/bin/python" ] || "$1/bin/python" -m venv "$peers"
"$peers/bin/pip" install --quiet "langchain-openai>=0.3,<2"
npm install --silent --no-save --prefix "$peers" openai@7
