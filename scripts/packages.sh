# Sourced: makes sure that programs are there, by installing Debian packages where
# that is allowed and by naming them where it is not.

# need PROGRAM WHERE_FROM
need() {
    command -v "$1" >/dev/null 2>&1 || { echo "missing: $1; install $2" >&2; exit 1; }
}

# packages PROGRAM=PACKAGE ...
packages() {
    missing=
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || missing="$missing ${pair#*=}"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing$missing" >&2
        (
            # Tests start servers of their own; none is to run because its package came.
            policy=/usr/sbin/policy-rc.d
            if [ ! -e "$policy" ]; then
                trap 'rm -f "$policy"' EXIT
                printf '#!/bin/sh\nexit 101\n' >"$policy"
                chmod 755 "$policy"
            fi
            apt-get update -qq
            # shellcheck disable=SC2086 # a list of package names
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
        ) >&2
    else
        echo "missing programs; run: sudo apt-get install$missing" >&2
        exit 1
    fi
}
