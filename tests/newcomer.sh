#!/usr/bin/env bash
# README's first commands, as a newcomer runs them: in a fresh, minimal Debian with its own Python, from a clean clone.
#
#   tests/newcomer.sh [RELEASE]...     by default bookworm and trixie. Needs root, and debootstrap or apt to install it
#
# TESTS         "all" (default): make test. "": no tests. Else what pytest gets, such as "tests/builds/linux tests/vm/qemu"
# NEWCOMER_DIR  where the systems are made, by default /var/tmp/topcoat-newcomer. The bare ones stay there for the next
#               run; what a run makes goes at its end
# MIRROR, SECURITY_MIRROR   of Debian; by default those of this host's apt
#
# It takes over this host's way to the network: name servers, certificates, and how apt and pip reach their archives. Of
# the checkout counts what is committed. Each release runs in mount and process name spaces of its own: when it ends,
# however it ends, nothing is mounted any more, and no process is left.
set -euo pipefail

PACKAGES=ca-certificates,git,make,python3,python3-venv
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
PLACE=${NEWCOMER_DIR:-/var/tmp/topcoat-newcomer}
TESTS=${TESTS-all}

fail() {
    echo "error: $*" >&2
    exit 1
}

# What the host's apt calls the archive of one of its suites
archive_of() {
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' | sed -n "s/^$1 //p" | head -n 1
}

# The bare system of a release, made once
base_of() {
    local base=$PLACE/$1.base
    if [ ! -e "$base/.complete" ]; then
        rm -rf "$base"
        echo "$1: making a minimal system with debootstrap" >&2
        debootstrap --variant=minbase --include="$PACKAGES" "$1" "$base" "$MIRROR" >"$PLACE/$1.debootstrap.log" 2>&1 ||
            fail "debootstrap failed; see $PLACE/$1.debootstrap.log"
        touch "$base/.complete"
    fi
    echo "$base"
}

# Into the system $1, release $2: how this host reaches the network, apt's archives and pip's
introduce() {
    local root=$1 release=$2 file
    {
        echo "deb $MIRROR $release main"
        echo "deb $MIRROR $release-updates main"
        echo "deb $SECURITY_MIRROR $release-security main"
    } >"$root/etc/apt/sources.list"
    apt-config dump | grep '^Acquire::' | grep -vE '^Acquire::(IndexTargets|Languages|GzipIndexes|CompressionTypes|Changelogs)' \
        >"$root/etc/apt/apt.conf.d/90host" || true
    [ ! -d /etc/apt/auth.conf.d ] || cp -r /etc/apt/auth.conf.d "$root/etc/apt/"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    cp -rL --no-preserve=links /etc/ssl/certs "$root/etc/ssl/" 2>/dev/null || true
    for file in /etc/pip.conf /etc/xdg/pip ~/.pip ~/.config/pip; do
        [ ! -e "$file" ] || { mkdir -p "$root${file%/*}" && cp -rL "$file" "$root${file%/*}/"; }
    done
}

# Directories of this host in which its pip looks for packages; an index names files beside it
pip_places() {
    { cat /etc/pip.conf /etc/xdg/pip/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf 2>/dev/null || true; env | grep ^PIP_ || true; } |
        grep -oE '(file://|= ?)/[^ ]+' | sed -E 's,^(file://|= ?),,; s,/simple/?$,,' | sort -u | while read -r path; do
        [ ! -d "$path" ] || echo "$path"
    done
}

# Run words in the system $root, with only what this host's environment says of the network
within() {
    local kept
    mapfile -t kept < <(env | grep -iE '^(PIP_[A-Z_]+|[a-z]+_proxy|SSL_CERT_[A-Z]+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE)=')
    env -i "${kept[@]}" HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" \
        chroot "$root" sh -ec "cd /root/topcoat 2>/dev/null; $1"
}

# One step of a release, timed
step() {
    local name=$1 began=$SECONDS
    echo "== $release: $name"
    within "$2" || fail "$release: $name failed after $((SECONDS - began)) s"
    printf '%-10s %5d s  %s\n' "$release" $((SECONDS - began)) "$name" >>"$PLACE/figures"
}

# In name spaces of its own: all that a newcomer does
newcomer() {
    release=$1
    root=$PLACE/$release
    # What a mount is not, cannot be the root of further name spaces
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
    mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t sysfs -o ro sysfs "$root/sys"
    pip_places | while read -r path; do
        mkdir -p "$root$path" && mount --bind -o ro "$path" "$root$path"
    done
    git clone -q "$SOURCE" "$root/root/topcoat"
    within 'echo "$(. /etc/os-release; echo "$PRETTY_NAME"), $(python3 --version), kernel $(uname -r)"'
    step "make boot" "make boot"
    step "topcoat ssh i0 -- uname -a" ".venv/bin/topcoat ssh i0 -- uname -a"
    within "qemu-system-x86_64 --version | head -n 1; .venv/bin/topcoat stop --all"
    case $TESTS in
    "") ;;
    all) step "make test" "make test" ;;
    *) step "pytest $TESTS" ".venv/bin/python -m pytest -n auto $TESTS" ;;
    esac
}

main() {
    [ "$(id -u)" = 0 ] || fail "making a system needs root"
    [ -n "$(git -C "$SOURCE" status --porcelain)" ] && echo "note: of $SOURCE counts only what is committed" >&2
    command -v debootstrap >/dev/null || apt-get install -y --no-install-recommends debootstrap >/dev/null 2>&1 ||
        { apt-get update -q && apt-get install -y --no-install-recommends debootstrap; } >&2
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # What apt has no lists of, it does not name either
    [ -n "$(archive_of "$codename")" ] && [ -n "$(archive_of "$codename-security")" ] || apt-get update -q >&2 || true
    export MIRROR=${MIRROR:-$(archive_of "$codename")}
    export SECURITY_MIRROR=${SECURITY_MIRROR:-$(archive_of "$codename-security")}
    [ -n "$MIRROR" ] && [ -n "$SECURITY_MIRROR" ] ||
        fail "this host's apt has no sources of Debian: say MIRROR and SECURITY_MIRROR"

    mkdir -p "$PLACE"
    exec 9>"$PLACE/lock"
    flock -n 9 || fail "another run works in $PLACE"
    : >"$PLACE/figures"
    releases=("$@")
    [ $# -gt 0 ] || releases=(bookworm trixie)
    inner=
    ended() {
        [ -z "$inner" ] || { kill -KILL "$inner" && wait "$inner"; } 2>/dev/null || true
        rm -rf "${releases[@]/#/$PLACE/}"
    }
    trap ended EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    for release in "${releases[@]}"; do
        base=$(base_of "$release")
        rm -rf "${PLACE:?}/$release"
        cp -a --reflink=auto "$base" "$PLACE/$release"
        introduce "$PLACE/$release" "$release"
        # Ends with us, by SIGKILL too; and all that runs in it with the first of its processes
        setpriv --pdeathsig KILL \
            unshare --mount --propagation private --pid --fork --kill-child "$0" --within "$release" </dev/null &
        inner=$!
        wait "$inner"
        inner=
        rm -rf "${PLACE:?}/$release"
    done
    echo "== figures: $(nproc) cores, $(date -I)"
    cat "$PLACE/figures"
}

# On one line, as bash reads a script while it runs, and it may be edited meanwhile
if [ "${1:-}" = --within ]; then newcomer "$2"; else main "$@"; fi; exit
