# What this machine must have: Docker, and Rust unless a binary is given. The rest is installed.
# shellcheck shell=bash

need_docker() {
  local answer
  have docker || fail "Docker is missing: install it (Debian: apt-get install docker.io) and run this again"
  answer=$(timeout 20 docker version --format '{{.Server.Version}}' 2>&1) && return
  case "$answer" in
    *[Pp]ermission\ denied*) fail "you may not use the Docker daemon: run this as root or join the group docker" ;;
    *) fail "the Docker daemon does not answer: start it (systemctl start docker). It said: ${answer##*$'\n'}" ;;
  esac
}

# need_packages PACKAGE...: installs them with apt.
need_packages() {
  have apt-get || fail "please install: $*"
  say "installing with apt: $*"
  as_root env DEBIAN_FRONTEND=noninteractive sh -c \
    'apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"' sh "$@" \
    > "$work_dir/apt.log" 2>&1 || { tail -n 5 "$work_dir/apt.log" >&2; fail "apt could not install: $*"; }
}

# Fails unless the Rust here is at least Cargo.toml's rust-version.
need_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
  PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  if ! have cargo || ! have rustc; then
    fail "Rust is missing: install Rust $wanted or newer (rustup), or set PGCM_BINARY"
  fi
  found=$(cd "$root" && rustc --version | cut -d' ' -f2) || fail "rustc does not work here"
  if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
    fail "Rust $found is too old: pgcm needs $wanted or newer (rustup update stable)"
  fi
}

# What compiling pgcm needs beside Rust.
need_build_packages() {
  local packages=()
  have cc || packages+=(gcc libc6-dev)
  have protoc || packages+=(protobuf-compiler)
  [ -e /usr/include/google/protobuf/timestamp.proto ] || packages+=(libprotobuf-dev)
  [ ${#packages[@]} -eq 0 ] || need_packages "${packages[@]}"
}

# Sets $binary to the pgcm to install: PGCM_BINARY, or a fresh build.
need_binary() {
  if [ -n "${PGCM_BINARY:-}" ]; then
    [ -x "$PGCM_BINARY" ] || fail "PGCM_BINARY=$PGCM_BINARY is not an executable file"
    binary=$PGCM_BINARY
    return
  fi
  need_rust
  need_build_packages
  say "building pgcm"
  # What cargo tells a test that starts this script is none of this build's: crates are built anew where it differs.
  (
    cd "$root"
    unset "${!CARGO_PKG_@}" CARGO_MANIFEST_DIR CARGO_MANIFEST_PATH OUT_DIR
    cargo build --release --locked --quiet --bin pgcm
  ) || fail "pgcm does not build; the errors are above"
  binary=${CARGO_TARGET_DIR:-$root/target}/release/pgcm
}

# Fails with a clear line when the binary cannot run in the node image.
check_binary_runs() {
  local answer
  answer=$(docker run --rm -i --entrypoint sh "$image" -c \
    'cat > /tmp/pgcm && chmod +x /tmp/pgcm && /tmp/pgcm --version' < "$binary" 2>&1) && return
  case "$answer" in
    *GLIBC_*) fail "$binary was built for a newer glibc than Debian $debian has: build it on Debian $debian or older, or use --debian trixie" ;;
    *) fail "$binary does not run in $image: ${answer##*$'\n'}" ;;
  esac
}

# Fails when something else listens where app01's PgBouncer is to be published.
check_port_is_free() {
  if [ "$cluster" != pgcm ]; then return; fi
  if (exec 3<> /dev/tcp/127.0.0.1/6432) 2> /dev/null; then
    fail "port 6432 of this machine is taken (see: ss -ltnp 'sport = :6432'); free it, or set PGCM_CLUSTER=NAME for a cluster without a published port"
  fi
}
