# What the scripts in this folder share. Source it.
# shellcheck shell=bash

set -euo pipefail

# What cargo has set for a test that runs a script: a build script of a dependency that reads it would run again, here and
# then outside, with everything that depends on it.
unset "${!CARGO_PKG_@}" "${!CARGO_MANIFEST_@}"

# shellcheck disable=SC2034 # for those who source this
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for those who source this
PATH=$PATH:/usr/sbin:/sbin
cache=${SCX_VSOCK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/scx-vsock}

# Files of this run only.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Prints a message on stderr, where it does not mix with a program's output.
say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# Ends with one line that names the thing and how to fix it.
die() {
    say "$*"
    exit 1
}

usage_error() {
    say "$*"
    exit 2
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# The comment at the top of the script, which is its help.
print_help() {
    sed -n '2,/^source/{/^source/d;s/^# \{0,1\}//p}' "$0"
}

# Rust is not installed from packages: they are older than what this needs.
need_cargo() {
    have cargo || die "missing: cargo; install Rust from https://rustup.rs"
}

# The version of all packages here.
workspace_version() {
    sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1
}

# The oldest version of Rust that the workspace supports.
oldest_rust() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml"
}

# Installs a version of Rust, unless it is there.
need_rust() { # VERSION
    have rustup || die "missing: rustup, which installs Rust $1; see https://rustup.rs"
    cargo "+$1" --version >/dev/null 2>&1 || with_progress "installing Rust $1" rustup toolchain install "$1" --profile minimal
}

# Makes the cache's folder $1 and prints its path.
cache_folder() {
    mkdir -p "$cache/$1" 2>/dev/null && [ -w "$cache/$1" ] ||
        die "cannot write to the cache $cache: make it writable, or set SCX_VSOCK_CACHE to a folder that is"
    printf '%s\n' "$cache/$1"
}

# The package of each distribution for a thing that a script may miss.
#
# Only apt's are installed by anything here, and so are tested. dnf's and pacman's appear in messages alone: their names
# come from the package indexes of Fedora and Arch Linux, and nothing runs them.
package_of() { # APT|DNF|PACMAN THING
    case "$1/$2" in
    apt/qemu-system-x86_64) echo qemu-system-x86 ;;
    dnf/qemu-system-x86_64) echo qemu-system-x86-core ;;
    pacman/qemu-system-x86_64) echo qemu-system-x86 ;;
    apt/qemu-system-aarch64) echo qemu-system-arm ;;
    dnf/qemu-system-aarch64) echo qemu-system-aarch64-core ;;
    pacman/qemu-system-aarch64) echo qemu-system-aarch64 ;;
    */qemu-aarch64-static) echo qemu-user-static ;;
    apt/aarch64-linux-gnu-gcc) echo "gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
    dnf/aarch64-linux-gnu-gcc) echo gcc-aarch64-linux-gnu ;;
    pacman/aarch64-linux-gnu-gcc) echo aarch64-linux-gnu-gcc ;;
    apt/x86_64-linux-gnu-gcc) echo "gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;;
    apt/busybox) echo busybox-static ;;
    */busybox) echo busybox ;;
    */depmod) echo kmod ;;
    */mke2fs) echo e2fsprogs ;;
    apt/dracut) echo dracut-core ;;
    apt/mkinitramfs) echo initramfs-tools ;;
    apt/xz) echo xz-utils ;;
    */xz) echo xz ;;
    */unshare) echo util-linux ;;
    apt/clang) clang_packages "$(newest_clang)" ;;
    */clang) echo "clang llvm" ;;
    apt/libelf) echo libelf-dev ;;
    dnf/libelf) echo elfutils-libelf-devel ;;
    pacman/libelf) echo libelf ;;
    apt/zlib) echo zlib1g-dev ;;
    dnf/zlib) echo zlib-devel ;;
    pacman/zlib) echo zlib ;;
    apt/libseccomp) echo libseccomp-dev ;;
    dnf/libseccomp) echo libseccomp-devel ;;
    pacman/libseccomp) echo libseccomp ;;
    apt/libcap-ng) echo libcap-ng-dev ;;
    dnf/libcap-ng) echo libcap-ng-devel ;;
    pacman/libcap-ng) echo libcap-ng ;;
    apt/python3-venv) echo python3-venv ;;
    */python3-venv) echo python3 ;;
    apt/protoc) echo protobuf-compiler ;;
    dnf/protoc) echo protobuf-compiler ;;
    pacman/protoc) echo protobuf ;;
    apt/pkg-config) echo pkg-config ;;
    dnf/pkg-config) echo pkgconf-pkg-config ;;
    pacman/pkg-config) echo pkgconf ;;
    apt/prometheus | apt/promtool) echo prometheus ;;
    dnf/prometheus | dnf/promtool) echo golang-github-prometheus ;;
    pacman/prometheus | pacman/promtool) echo prometheus ;;
    apt/llvm-cov-*) echo "llvm-${2##*-}" ;;
    */llvm-cov-*) echo llvm ;;
    apt/cc) echo "gcc libc6-dev make" ;;
    */cc) echo "gcc make" ;;
    apt/c++) echo g++ ;;
    */c++) echo gcc-c++ ;;
    *) echo "$2" ;;
    esac
}

clang_packages() { # VERSION
    echo "clang${1:+-$1} llvm${1:+-$1}"
}

# The newest clang that this Debian release packages.
newest_clang() {
    apt-cache search --names-only '^clang-[0-9]+$' 2>/dev/null | sed -E 's/^clang-([0-9]+) .*/\1/' | sort -n | tail -n 1
}

# The version of the compiler's LLVM, whose tools read what it writes.
compilers_llvm() {
    rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'
}

# Whether thing $1 is installed.
is_installed() {
    case "$1" in
    libelf) pkg_config_has libelf ;;
    zlib) pkg_config_has zlib ;;
    libseccomp) pkg_config_has libseccomp ;;
    libcap-ng) pkg_config_has libcap-ng ;;
    python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    clang) [ -n "$(find_clang)" ] ;;
    *) have "$1" ;;
    esac
}

pkg_config_has() {
    have pkg-config && pkg-config --exists "$1"
}

# The newest clang that is installed.
find_clang() {
    { compgen -c clang- || true; } | grep -E '^clang-[0-9]+$' | sort -t- -k2 -n | tail -n 1
    ! have clang || echo clang
} 2>/dev/null

# Installs each missing thing as root on Debian; elsewhere ends with the command that installs them.
need() { # THING...
    local thing missing=()
    for thing in "$@"; do
        is_installed "$thing" || missing+=("$thing")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if have apt-get && [ "$(id -u)" = 0 ]; then
        install_by_apt "${missing[@]}"
    else
        die "missing: ${missing[*]}; install with: $(install_line "${missing[@]}")"
    fi
}

packages_for() { # APT|DNF|PACMAN THING...
    local manager=$1 thing
    shift
    for thing in "$@"; do
        package_of "$manager" "$thing"
    done | tr ' ' '\n' | sort -u | paste -sd' '
}

install_line() { # THING...
    if have apt-get; then
        echo "apt-get install $(packages_for apt "$@")"
    elif have dnf; then
        echo "dnf install $(packages_for dnf "$@")"
    elif have pacman; then
        echo "pacman -S $(packages_for pacman "$@")"
    else
        echo "your package manager: $(packages_for none "$@")"
    fi
}

install_by_apt() { # THING...
    local packages
    apt_update_once
    read -ra packages <<<"$(packages_for apt "$@")"
    with_progress "installing ${packages[*]}" \
        env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
}

apt_updated=
apt_update_once() {
    [ -z "$apt_updated" ] || return 0
    say "updating the package lists"
    apt-get update >/dev/null 2>&1 || die "apt-get update failed: run it to see why, and try again"
    apt_updated=1
}

# Prints the mirror that this system's apt uses for Debian.
debian_mirror() {
    apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' '$1 == "Debian" && $2 == "main" && $3 !~ /-/ { print $4; exit }'
}

# Runs "$@" holding the cache's lock $1, so that two runs do not fetch or build the same thing.
locked() { # NAME COMMAND...
    local folder name=$1
    folder=$(cache_folder locks)
    shift
    (
        flock 9
        "$@"
    ) 9>"$folder/$name"
}

# Runs "$@" with its output in the file $2, printing the elapsed time every half minute. Returns its status.
with_log() { # WHAT LOG COMMAND...
    local what=$1 log=$2 started=$SECONDS status=0 ticker
    shift 2
    say "$what"
    # A wait of the shell's own: a sleeping child would outlive the ticker, and hold its output open.
    (while ! read -rt 30 <> <(:); do say "$what: $((SECONDS - started)) s so far, $(tail -n 1 "$log" | cut -c 1-100)"; done) &
    ticker=$!
    "$@" >"$log" 2>&1 || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    return "$status"
}

# Runs "$@" with progress; if it fails, prints the last of its output and ends.
with_progress() { # WHAT COMMAND...
    local what=$1 log=$scratch/progress status=0
    shift
    with_log "$what" "$log" "$@" || status=$?
    [ "$status" = 0 ] || tail -n 30 "$log" >&2
    [ "$status" = 0 ] || die "$what failed with status $status (see above)"
}
