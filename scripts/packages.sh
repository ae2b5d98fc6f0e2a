# Sourced: makes sure that programs are there, by installing Debian packages where
# that is allowed and by naming them where it is not.

# need PROGRAM WHERE_FROM
need() {
    command -v "$1" >/dev/null 2>&1 || { echo "missing: $1; install $2" >&2; exit 1; }
}

# packages PROGRAM-OR-FILE=PACKAGE ...
packages() {
    missing=
    for pair in "$@"; do
        [ -e "${pair%%=*}" ] || command -v "${pair%%=*}" >/dev/null 2>&1 ||
            missing="$missing ${pair#*=}"
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

# program_of PACKAGE PATH DIR: one program of a package that is not wanted as a whole; DIR goes on the path
program_of() {
    PATH=$PATH:$3
    export PATH
    ! command -v "${2##*/}" >/dev/null 2>&1 || return 0
    echo "fetching ${2##*/} of $1" >&2
    (
        mkdir -p "$3"
        unpacked=$(mktemp -d)
        trap 'rm -rf "$unpacked"' EXIT
        cd "$unpacked"
        # Said by root: that it is not fetched by a user without rights.
        apt-get download -qq "$1" 2>/dev/null || { echo "missing: ${2##*/}; install $1" >&2; exit 1; }
        dpkg-deb --fsys-tarfile ./*.deb | tar -x ".$2"
        mv ".$2" "$3/"
    )
}
