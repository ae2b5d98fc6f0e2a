#!/bin/sh
# Turn a corpus into the night after housekeeping; see night2.sh --help.
exec "${PYTHON:-python3}" -B "$(dirname "$0")/night2.py" "$@"
