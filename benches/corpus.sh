#!/bin/sh
# Make a forge-like corpus; see corpus.sh --help.
exec "${PYTHON:-python3}" -B "$(dirname "$0")/corpus.py" "$@"
