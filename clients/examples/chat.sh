#!/bin/sh
# One question with curl: the whole answer, then the same streamed as server-sent events.
set -eu
base=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
key=${OPENAI_API_KEY:-none}

model=$(curl --silent --show-error --fail "$base/models" -H "Authorization: Bearer $key" |
    sed 's/.*"data":\[{"id":"\([^"]*\)".*/\1/')

ask() {
    curl --silent --show-error --fail --no-buffer "$base/chat/completions" \
        -H "Authorization: Bearer $key" -H "Content-Type: application/json" \
        -d "{\"model\": \"$model\", \"stream\": $1, \"max_tokens\": 64,
             \"messages\": [{\"role\": \"user\", \"content\": \"Hello! My name is Ada.\"}]}"
    echo
}

ask false
ask true
