#!/bin/sh
# Install the backup tools that Forgekeep is compared with into one directory.
# See --help. Idempotent: whatever is there already is kept.
set -u

usage() {
    cat <<'USAGE'
usage: peers.sh DIR

Installs into DIR (created if missing) the peers of the side-by-side benchmark:

  restic    Debian package            -> DIR/bin/restic (link)
  rustic    crate rustic-rs           -> DIR/bin/rustic
  bupstash  crate bupstash 0.12.0     -> DIR/bin/bupstash
  conserve  crate conserve            -> DIR/bin/conserve
  borg      PyPI borgbackup 1.4.x     -> DIR/bin/borg (link into DIR/venv)

A peer that cannot be installed is named and skipped; that is never fatal.
Running it again installs only what is missing. At the end a table
name/version/path is printed. Build logs are kept in DIR/logs.

Debian packages are installed with apt-get when this runs as root.
Environment:
  CARGO_BUILD_JOBS     parallel jobs of cargo (cargo's own default otherwise)
  PYTHON               interpreter for borg's venv (default: python3)
  PEERS_NO_APT=1       never call apt-get
USAGE
}

case "${1:-}" in
    -h|--help) usage; exit 0 ;;
    ''|-*)     usage >&2; exit 2 ;;
esac

mkdir -p "$1/bin" "$1/logs" || exit 1
DIR=$(cd "$1" && pwd) || exit 1
BIN=$DIR/bin
LOG=$DIR/logs

say() { printf '%s\n' "peers: $*" >&2; }

# apt NAME...: install Debian packages that are not there yet.
apt() {
    missing=
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' ||
            missing="$missing $p"
    done
    [ -z "$missing" ] && return 0
    if [ -n "${PEERS_NO_APT:-}" ] || [ "$(id -u)" != 0 ]; then
        say "not installed (no root or PEERS_NO_APT):$missing"
        return 1
    fi
    # One by one, so that a single unavailable package does not stop the rest.
    rc=0
    for p in $missing; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$p" \
            >>"$LOG/apt.log" 2>&1 || { say "apt-get install $p failed"; rc=1; }
    done
    return $rc
}

# crate BINARY CRATE [cargo install options]: build one crate into DIR/bin.
crate() {
    bin=$1; name=$2; shift 2
    [ -x "$BIN/$bin" ] && return 0
    command -v cargo >/dev/null 2>&1 || { say "no cargo, skipping $bin"; return 1; }
    say "building $name ..."
    CARGO_TARGET_DIR=$DIR/build/$bin cargo install --locked --root "$DIR" "$@" "$name" \
        >"$LOG/$bin.log" 2>&1 || { say "$bin: cargo install failed, see $LOG/$bin.log"; return 1; }
    rm -rf "$DIR/build/$bin"
}

get_restic() {
    [ -x "$BIN/restic" ] && return 0
    apt restic
    path=$(command -v restic) || { say "restic not available"; return 1; }
    ln -sf "$path" "$BIN/restic"
}

get_borg() {
    [ -x "$BIN/borg" ] && "$BIN/borg" --version >/dev/null 2>&1 && return 0
    py=${PYTHON:-python3}
    apt python3-venv
    "$py" -m venv "$DIR/venv" >"$LOG/borg.log" 2>&1 || { say "borg: no venv"; return 1; }
    # A wheel is enough; without one the headers are needed for a build.
    if ! "$DIR/venv/bin/pip" install --only-binary :all: 'borgbackup>=1.4,<1.5' >>"$LOG/borg.log" 2>&1; then
        apt build-essential pkg-config python3-dev libacl1-dev liblz4-dev libzstd-dev libxxhash-dev libssl-dev
        say "building borgbackup ..."
        "$DIR/venv/bin/pip" install 'borgbackup>=1.4,<1.5' >>"$LOG/borg.log" 2>&1 ||
            { say "borg: pip failed, see $LOG/borg.log"; return 1; }
    fi
    ln -sf "$DIR/venv/bin/borg" "$BIN/borg"
}

get_restic
get_borg
apt libsodium-dev pkg-config build-essential; crate bupstash bupstash --version 0.12.0
crate conserve conserve
crate rustic rustic-rs
# vykar would belong here as well, but no registry in use carries it.

printf '%-10s %-40s %s\n' NAME VERSION PATH
for t in restic rustic bupstash conserve borg; do
    if [ -x "$BIN/$t" ]; then
        case $t in
            restic) v=$("$BIN/$t" version 2>/dev/null | head -n 1) ;;
            *)      v=$("$BIN/$t" --version 2>/dev/null | head -n 1) ;;
        esac
        printf '%-10s %-40.40s %s\n' "$t" "${v:-?}" "$BIN/$t"
    else
        printf '%-10s %-40s %s\n' "$t" MISSING -
    fi
done
